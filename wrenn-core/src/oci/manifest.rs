//! What an image says of itself: indexes, manifests and configurations.
//!
//! <https://github.com/opencontainers/image-spec>

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::oci::digest::Digest;
use crate::oci::error::OciError;

/// A reference to a part of an image.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    platform: Option<Platform>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
}

/// An index or a manifest.
#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Descriptor>),
    Image(Manifest),
}

#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: String,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

impl Document {
    /// `what` has the bytes, for errors.
    pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Self, OciError> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(OciError::json(what))?;
        let (index, image) = (INDEX_TYPES.contains(&&*raw.media_type), IMAGE_TYPES.contains(&&*raw.media_type));
        if !raw.media_type.is_empty() && !index && !image {
            return Err(OciError::MediaType { what: what.to_owned(), media_type: raw.media_type });
        }
        if raw.schema_version != Some(2) {
            return Err(OciError::malformed(what, "its schemaVersion is not 2"));
        }
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) if !image => Ok(Self::Index(manifests)),
            (None, Some(config), Some(layers)) if !index => Ok(Self::Image(Manifest { config, layers })),
            _ => Err(OciError::malformed(what, "it is neither an index nor a manifest of an image")),
        }
    }

    /// What it accepts, for a registry.
    pub(super) fn accepted() -> String {
        [INDEX_TYPES, IMAGE_TYPES].concat().join(", ")
    }
}

impl Manifest {
    /// Fails where a layer is of an unknown kind, or there are too many.
    pub(super) fn check(&self, what: &str, layers_max: usize) -> Result<(), OciError> {
        if self.layers.is_empty() {
            return Err(OciError::malformed(what, "it has no layers"));
        }
        if self.layers.len() > layers_max {
            return Err(OciError::Limit { what: format!("the number of layers of {what}"), limit: layers_max as u64 });
        }
        for layer in &self.layers {
            if !LAYER_TYPES.contains(&&*layer.media_type) {
                let media_type = layer.media_type.clone();
                return Err(OciError::MediaType { what: format!("the layer {}", layer.digest), media_type });
            }
        }
        Ok(())
    }
}

impl Descriptor {
    pub(super) fn digest(&self) -> Result<Digest, OciError> {
        Digest::parse(&self.digest, "a reference in the image")
    }

    pub(super) fn is_named(&self, tag: &str) -> bool {
        let name = self.annotations.as_ref().and_then(|all| all.get("org.opencontainers.image.ref.name"));
        name.is_some_and(|name| name == tag || name.rsplit_once(':').is_some_and(|(_, end)| end == tag))
    }
}

/// The image for guests: linux/amd64, of the oldest variant.
pub(super) fn choose(manifests: &[Descriptor]) -> Result<&Descriptor, OciError> {
    let rank = |descriptor: &Descriptor| match &descriptor.platform {
        None => Some(3),
        Some(platform) if platform.os != "linux" || platform.architecture != "amd64" => None,
        Some(platform) => match platform.variant.as_deref() {
            None | Some("" | "v1") => Some(0),
            Some("v2") => Some(1),
            Some(_) => Some(2),
        },
    };
    let best = manifests.iter().filter_map(|one| rank(one).map(|rank| (rank, one))).min_by_key(|(rank, _)| *rank);
    best.map(|(_, one)| one).ok_or_else(|| {
        let platforms: BTreeSet<String> = manifests.iter().filter_map(|one| one.platform.as_ref()).map(name).collect();
        // Attestations are of no platform.
        OciError::Platform { available: platforms.into_iter().filter(|name| !name.starts_with("unknown/")).collect() }
    })
}

fn name(platform: &Platform) -> String {
    let variant = platform.variant.as_deref().filter(|variant| !variant.is_empty());
    let variant = variant.map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os, platform.architecture)
}

/// How an image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageConfig {
    /// `NAME=VALUE`.
    pub(crate) env: Vec<String>,
    /// A name or number, and after a colon a group. Empty: root.
    pub(crate) user: String,
    /// Empty: `/`.
    pub(crate) working_dir: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    /// `8000/tcp`, for one.
    pub(crate) exposed_ports: BTreeSet<String>,
    /// A name or a number.
    pub(crate) stop_signal: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
    config: Option<RawRun>,
    rootfs: Option<RawRoot>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawRoot {
    diff_ids: Option<Vec<String>>,
}

/// The configuration, and the digests of its `layers` archives where it has them.
pub(super) fn config(bytes: &[u8], layers: usize) -> Result<(ImageConfig, Vec<Digest>), OciError> {
    let what = "the image's configuration";
    let raw: RawConfig = serde_json::from_slice(bytes).map_err(OciError::json(what))?;
    let platform = Platform { architecture: raw.architecture, os: raw.os, variant: raw.variant };
    let foreign = |value: &str, wanted: &str| !value.is_empty() && value != wanted;
    if foreign(&platform.os, "linux") || foreign(&platform.architecture, "amd64") {
        return Err(OciError::Platform { available: vec![name(&platform)] });
    }
    let diff_ids = raw.rootfs.and_then(|root| root.diff_ids).unwrap_or_default();
    if !diff_ids.is_empty() && diff_ids.len() != layers {
        return Err(OciError::malformed(what, format!("it names {} layers and there are {layers}", diff_ids.len())));
    }
    let diff_ids = diff_ids.iter().map(|text| Digest::parse(text, what)).collect::<Result<_, _>>()?;
    let run = raw.config.unwrap_or_default();
    let config = ImageConfig {
        env: run.env.unwrap_or_default(),
        user: run.user.unwrap_or_default(),
        working_dir: run.working_dir.unwrap_or_default(),
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
        stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
        labels: run.labels.unwrap_or_default(),
    };
    Ok((config, diff_ids))
}

const INDEX_TYPES: &[&str] =
    &["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const IMAGE_TYPES: &[&str] =
    &["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const LAYER_TYPES: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(platform: &str) -> Descriptor {
        let mut parts = platform.split('/').map(str::to_owned);
        let (os, architecture, variant) = (parts.next().unwrap(), parts.next().unwrap(), parts.next());
        Descriptor {
            media_type: IMAGE_TYPES[0].to_owned(),
            digest: platform.to_owned(),
            size: 1,
            platform: Some(Platform { architecture, os, variant }),
            annotations: None,
        }
    }

    #[test]
    fn the_platform_of_guests_is_chosen_and_the_others_are_named() {
        let all =
            ["linux/arm64/v8", "linux/amd64/v3", "linux/amd64", "windows/amd64", "unknown/unknown"].map(descriptor);
        assert_eq!(choose(&all).unwrap().digest, "linux/amd64");
        let others: Vec<_> = all.iter().filter(|one| !one.digest.contains("linux/amd64")).cloned().collect();
        let error = choose(&others).unwrap_err();
        assert!(error.to_string().contains("linux/arm64/v8, windows/amd64, and"), "{error}");
    }

    #[test]
    fn malformed_documents_are_refused() {
        let what = |text: &str| Document::parse(text.as_bytes(), "the manifest").unwrap_err();
        let helm = r#"{"schemaVersion":2,"mediaType":"application/x.helm","manifests":[]}"#;
        assert!(matches!(what(helm), OciError::MediaType { .. }));
        for text in [
            "",
            "[]",
            "{}",
            r#"{"schemaVersion":1,"layers":[]}"#,
            r#"{"schemaVersion":2}"#,
            r#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{"digest":"x","size":1}}"#,
            r#"{"schemaVersion":2,"manifests":[{"size":-1}]}"#,
        ] {
            assert!(matches!(what(text), OciError::Malformed { .. }), "{text}");
        }
    }

    #[test]
    fn layers_are_of_known_kinds_and_not_too_many() {
        let layer = Descriptor { media_type: LAYER_TYPES[1].to_owned(), ..descriptor("linux/amd64") };
        let check = |layers: Vec<Descriptor>| Manifest { config: layer.clone(), layers }.check("the manifest", 3);
        assert!(check(vec![layer.clone(); 3]).is_ok());
        assert!(matches!(check(Vec::new()), Err(OciError::Malformed { .. })));
        assert!(matches!(check(vec![layer.clone(); 4]), Err(OciError::Limit { .. })));
        let foreign = Descriptor { media_type: "application/x.unheard-of".to_owned(), ..layer.clone() };
        assert!(check(vec![foreign]).unwrap_err().to_string().contains("x.unheard-of"));
    }

    #[test]
    fn a_configuration_says_how_to_run() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"User":"1:2","Env":["A=b"],"Cmd":null,
            "Entrypoint":["/e","x"],"WorkingDir":"/w","ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGINT","Labels":{"l":"v"},
            "Volumes":{"/data":{}}},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let (config, diff_ids) = config(text.as_bytes(), 1).unwrap();
        assert!(diff_ids.is_empty() && config.cmd.is_empty());
        assert_eq!((&*config.user, &*config.working_dir, config.env), ("1:2", "/w", vec!["A=b".to_owned()]));
        assert_eq!(config.entrypoint, ["/e", "x"]);
        assert!(config.exposed_ports.contains("80/tcp") && config.labels["l"] == "v");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        assert!(
            super::config(br#"{"os":"linux","architecture":"arm64"}"#, 1)
                .unwrap_err()
                .to_string()
                .contains("linux/arm64")
        );
        let two = format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, Digest::of(b""));
        assert!(matches!(super::config(two.as_bytes(), 2), Err(OciError::Malformed { .. })));
        assert!(super::config(two.as_bytes(), 1).is_ok());
    }
}
