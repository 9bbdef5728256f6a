//! Package URLs: names that scanners know packages by. <https://github.com/package-url/purl-spec>

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::oci::package::{Package, PackageKind};
use crate::oci::{Distribution, Source};

/// Of a package. A package of no known distribution counts as one of its kind's first.
pub(super) fn of_package(package: &Package, distribution: Option<&Distribution>) -> String {
    let (kind, vendor) = match package.kind {
        PackageKind::Deb => ("deb", "debian"),
        PackageKind::Apk => ("apk", "alpine"),
        PackageKind::Rpm => ("rpm", "fedora"),
    };
    let vendor = distribution.map_or(vendor, |distribution| &distribution.id);
    let (vendor, name) = (encoded(&vendor.to_lowercase()), encoded(&package.name.to_lowercase()));
    let release = distribution.and_then(|it| it.version.as_ref().map(|version| format!("{}-{version}", it.id)));
    // RPM's epoch is no part of its version there.
    let (epoch, version) = match package.version.split_once(':') {
        Some((epoch, version)) if package.kind == PackageKind::Rpm => (Some(epoch), version),
        _ => (None, &*package.version),
    };
    let qualifiers = [("arch", package.architecture.as_deref()), ("distro", release.as_deref()), ("epoch", epoch)];
    format!("pkg:{kind}/{vendor}/{name}@{}{}", encoded(version), qualified(qualifiers))
}

/// Of an image of a registry; `None` of one that came from elsewhere.
pub(super) fn of_image(reference: &str, digest: &str) -> Option<String> {
    let Ok(Source::Registry(reference)) = reference.parse() else { return None };
    let repository = format!("{}/{}", reference.registry(), reference.repository());
    let name = reference.repository().rsplit('/').next().unwrap_or_default().to_lowercase();
    let qualifiers = [("repository_url", Some(&*repository)), ("tag", reference.tag())];
    Some(format!("pkg:oci/{}@{}{}", encoded(&name), encoded(digest), qualified(qualifiers)))
}

/// Qualifiers in the order of their names.
fn qualified<const N: usize>(qualifiers: [(&str, Option<&str>); N]) -> String {
    let pairs = qualifiers.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(value?))));
    let pairs: Vec<String> = pairs.collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b'~').remove(b':');

#[cfg(test)]
mod tests {
    use super::*;

    fn package(kind: &str, name: &str, version: &str) -> Package {
        let text = serde_json::json!({"name": name, "version": version, "kind": kind, "architecture": "amd64"});
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_package_has_the_url_that_scanners_know() {
        let debian = Distribution { id: "debian".to_owned(), version: Some("12".to_owned()) };
        assert_eq!(
            of_package(&package("deb", "libstdc++6", "1:12.2.0-14+deb12u1"), Some(&debian)),
            "pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12"
        );
        let rolling = Distribution { id: "wolfi".to_owned(), version: None };
        assert_eq!(of_package(&package("apk", "Musl", "1/2"), Some(&rolling)), "pkg:apk/wolfi/musl@1%2F2?arch=amd64");
        assert_eq!(of_package(&package("apk", "musl", "1"), None), "pkg:apk/alpine/musl@1?arch=amd64");
        let fedora = Distribution { id: "fedora".to_owned(), version: Some("40".to_owned()) };
        assert_eq!(
            of_package(&package("rpm", "vim", "2:9.1-1.fc40"), Some(&fedora)),
            "pkg:rpm/fedora/vim@9.1-1.fc40?arch=amd64&distro=fedora-40&epoch=2"
        );
    }

    #[test]
    fn an_image_of_a_registry_has_one() {
        assert_eq!(
            of_image("docker.io/library/python:3.12", "sha256:ab").as_deref(),
            Some("pkg:oci/python@sha256:ab?repository_url=docker.io%2Flibrary%2Fpython&tag=3.12")
        );
        assert_eq!(of_image("tar:/root.tar", "sha256:ab"), None);
    }
}
