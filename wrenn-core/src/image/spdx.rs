//! What an image has, as a document of SPDX 2.3. <https://spdx.github.io/spdx-spec/v2.3/>
//!
//! ```text
//! DOCUMENT -DESCRIBES-> Image -CONTAINS-> Kernel, Agent, Package-1, Package-2, ...
//! ```

use serde_json::{Map, Value, json};
use spdx::{Expression, ParseMode};
use time::OffsetDateTime;

use crate::image::installed::Image;
use crate::image::manifest::Manifest;
use crate::image::purl;
use crate::oci::Distribution;
use crate::oci::package::Package;

impl Image {
    /// What the image has, as a JSON document of SPDX 2.3: the image with its digest, the guest's kernel and agent, and each
    /// of [`packages`](Self::packages) with its package URL. What was not read, an RPM database for one, is in the comment of
    /// the image's package. The same image gives the same document.
    ///
    /// ```no_run
    /// # fn demo() -> Result<(), wrenn_core::image::ImageError> {
    /// use wrenn_core::image::Image;
    ///
    /// let image = Image::open(&wrenn_core::default_data_dir(), "base")?;
    /// println!("{}", image.spdx());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn spdx(&self) -> String {
        format!("{:#}", document(self.name(), &self.manifest))
    }
}

fn document(name: &str, manifest: &Manifest) -> Value {
    let distribution = manifest.distribution();
    let listed = manifest.packages.iter().map(|package| listed(package, distribution.as_ref()));
    let parts = [("Kernel".to_owned(), kernel(manifest)), ("Agent".to_owned(), agent(manifest))];
    let parts = parts.into_iter().chain((1..).map(|number| format!("Package-{number}")).zip(listed));
    let (mut packages, mut relationships) = (
        vec![whole("Image", image(name, manifest))],
        vec![relationship("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image")],
    );
    for (id, part) in parts {
        relationships.push(relationship("SPDXRef-Image", "CONTAINS", &format!("SPDXRef-{id}")));
        packages.push(whole(&id, part));
    }
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace":
            format!("https://spdx.org/spdxdocs/wrenn-{name}-{}-{}", manifest.digest(), manifest.built_at_unix_s),
        "creationInfo": {
            "created": time_of(manifest.built_at_unix_s),
            "creators": [concat!("Tool: wrenn-", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": relationships,
    })
}

/// A package with what each has to have.
fn whole(id: &str, fields: Value) -> Value {
    let mut package = json!({
        "SPDXID": format!("SPDXRef-{id}"),
        "downloadLocation": NO_ASSERTION,
        "filesAnalyzed": false,
        "licenseConcluded": NO_ASSERTION,
        "licenseDeclared": NO_ASSERTION,
        "copyrightText": NO_ASSERTION,
    });
    if let (Value::Object(package), Value::Object(fields)) = (&mut package, fields) {
        package.extend(fields);
    }
    package
}

fn image(name: &str, manifest: &Manifest) -> Value {
    let of_base = || manifest.files.get(manifest.base()).map(|base| format!("sha256:{}", base.sha256));
    let digest = manifest.oci.as_ref().map(|oci| oci.digest.clone()).or_else(of_base).unwrap_or_default();
    let url = manifest.oci.as_ref().and_then(|oci| purl::of_image(&oci.reference, &oci.digest));
    let mut fields = Map::from_iter([
        ("name".to_owned(), json!(manifest.oci.as_ref().map_or(name, |oci| &oci.reference))),
        ("versionInfo".to_owned(), json!(digest)),
        ("primaryPackagePurpose".to_owned(), json!("CONTAINER")),
        ("checksums".to_owned(), checksums(digest.strip_prefix("sha256:").unwrap_or(&digest))),
    ]);
    let unread = unread(manifest);
    if !unread.is_empty() {
        fields.insert("comment".to_owned(), json!(format!("not in this list: {}", unread.join("; "))));
    }
    if let Some(url) = url {
        fields.insert("externalRefs".to_owned(), references(&url));
    }
    Value::Object(fields)
}

fn unread(manifest: &Manifest) -> Vec<&str> {
    match manifest.oci.as_ref().map(|oci| &oci.packages_unread) {
        None => Vec::new(),
        Some(Some(unread)) => unread.iter().map(String::as_str).collect(),
        Some(None) => vec!["the image's packages, since an earlier wrenn pulled it: a refresh reads them"],
    }
}

/// It comes from Debian, whatever the base is.
fn kernel(manifest: &Manifest) -> Value {
    let name = format!("linux-image-{}", manifest.kernel_release);
    json!({
        "name": name,
        "versionInfo": manifest.kernel_release,
        "primaryPackagePurpose": "OPERATING_SYSTEM",
        "externalRefs": references(&format!("pkg:deb/debian/{name}?arch=amd64&distro={}", manifest.suite)),
    })
}

fn agent(manifest: &Manifest) -> Value {
    json!({"name": "wrenn-envd", "primaryPackagePurpose": "APPLICATION", "checksums": checksums(&manifest.agent_sha256)})
}

fn listed(package: &Package, distribution: Option<&Distribution>) -> Value {
    let mut fields = json!({
        "name": package.name,
        "versionInfo": package.version,
        "externalRefs": references(&purl::of_package(package, distribution)),
    });
    if let Some(license) = &package.license {
        let key = if is_expression(license) { "licenseDeclared" } else { "licenseComments" };
        fields[key] = json!(license);
    }
    fields
}

/// Whether a document may declare a licence so. A reference to a text would need that text.
fn is_expression(license: &str) -> bool {
    let mode = ParseMode { allow_deprecated: true, ..ParseMode::STRICT };
    let is_plain = !license.contains("Ref-") && license.split([' ', '(', ')']).all(|word| !OPERATORS.contains(&word));
    is_plain && Expression::parse_mode(license, mode).is_ok()
}

fn references(url: &str) -> Value {
    json!([{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}])
}

fn checksums(sha256: &str) -> Value {
    json!([{"algorithm": "SHA256", "checksumValue": sha256}])
}

fn relationship(of: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": of, "relationshipType": kind, "relatedSpdxElement": to})
}

/// To the second, as SPDX wants it.
fn time_of(unix_s: u64) -> String {
    let time = i64::try_from(unix_s).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let (date, at) = {
        let time = time.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        (time.date(), time.time())
    };
    let (month, day) = (u8::from(date.month()), date.day());
    format!("{:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", date.year(), at.hour(), at.minute(), at.second())
}

const NO_ASSERTION: &str = "NOASSERTION";
/// The parser takes them in small letters, and SPDX does not.
const OPERATORS: [&str; 3] = ["and", "or", "with"];

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(packages: &Value, unread: &Value) -> Manifest {
        let file = json!({"size_bytes": 1, "allocated_bytes": 1, "sha256": "b".repeat(64)});
        let manifest = json!({
            "format": 1, "suite": "bookworm", "extra_packages": [], "recipe_sha256": "", "modules": [],
            "kernel_release": "6.1.0-1-cloud-amd64", "agent_sha256": "a".repeat(64), "drive_size_bytes": 0,
            "files": {"base.erofs": file}, "built_at_unix_s": 1_700_000_000, "packages": packages,
            "oci": {
                "reference": "docker.io/library/tool:1", "digest": format!("sha256:{}", "c".repeat(64)), "layers": [],
                "labels": {}, "distribution": {"id": "alpine", "version": "3.20.1"}, "packages_unread": unread,
            },
        });
        serde_json::from_value(manifest).unwrap()
    }

    #[test]
    fn a_document_has_the_image_and_its_packages() {
        let packages = json!([
            {"name": "musl", "version": "1.2.5-r0", "kind": "apk", "architecture": "x86_64", "license": "MIT"},
            {"name": "odd", "version": "1", "kind": "apk", "license": "MIT and custom"},
        ]);
        let document = document("tool", &manifest(&packages, &json!(["the RPM database /x is not read"])));
        assert_eq!(document["creationInfo"]["created"], "2023-11-14T22:13:20Z");
        let packages = document["packages"].as_array().unwrap();
        let of = |name: &str| packages.iter().find(|package| package["name"] == name).unwrap();
        let image = of("docker.io/library/tool:1");
        assert_eq!(image["checksums"][0]["checksumValue"], "c".repeat(64));
        assert_eq!(image["comment"], "not in this list: the RPM database /x is not read");
        let musl = of("musl");
        assert_eq!(musl["licenseDeclared"], "MIT");
        let url = "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine-3.20.1";
        assert_eq!(musl["externalRefs"][0]["referenceLocator"], url);
        assert_eq!(
            (&of("odd")["licenseDeclared"], &of("odd")["licenseComments"]),
            (&json!("NOASSERTION"), &json!("MIT and custom"))
        );
        assert_eq!(of("linux-image-6.1.0-1-cloud-amd64")["versionInfo"], "6.1.0-1-cloud-amd64");
        // Each has an id of its own, and hangs on the image.
        let ids: std::collections::BTreeSet<_> = packages.iter().map(|package| package["SPDXID"].to_string()).collect();
        let related: std::collections::BTreeSet<_> = document["relationships"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["relatedSpdxElement"].to_string())
            .collect();
        assert_eq!((ids.len(), &ids), (5, &related));
    }

    #[test]
    fn an_image_of_an_earlier_wrenn_says_that_its_packages_are_not_known() {
        let document = document("tool", &manifest(&json!([]), &Value::Null));
        assert!(document["packages"][0]["comment"].as_str().unwrap().contains("a refresh reads them"));
    }

    #[test]
    fn a_licence_is_declared_where_it_is_an_expression() {
        let good = ["MIT", "GPL-2.0-only AND (MIT OR BSD-3-Clause)", "GPL-2.0", "Apache-2.0 WITH LLVM-exception"];
        assert!(good.into_iter().all(is_expression));
        let bad = ["custom", "MIT BSD", "MIT and ISC", "LicenseRef-x", "", "MIT AND", &"(".repeat(1024)];
        assert!(bad.into_iter().all(|license| !is_expression(license)));
    }
}
