//! `image.json`: what an image is made of. Written last, so an image that has one is whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::defaults::Defaults;
use crate::image::digest;
use crate::image::error::ImageError;
use crate::oci::Distribution;
use crate::oci::package::Package;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) suite: String,
    pub(super) extra_packages: Vec<String>,
    /// [`Recipe::digest`](super::rootfs::Recipe::digest) of what made the base and took the kernel.
    pub(super) recipe_sha256: String,
    pub(super) kernel_release: String,
    /// [`Kernel::digest`](super::kernel::Kernel::digest) of the kernel that the image was built with; empty in an older one.
    #[serde(default)]
    pub(super) kernel_sha256: String,
    /// [`modules::wanted_digest`](super::modules::wanted_digest) of the library that fetched the kernel.
    #[serde(default)]
    pub(super) kernel_wanted: String,
    /// 0 in an image that was built before this was written down.
    #[serde(default)]
    pub(super) kernel_fetched_at_unix_s: u64,
    /// File names in load order.
    pub(super) modules: Vec<String>,
    pub(super) agent_sha256: String,
    /// Whether the builder was given this agent. Such an agent is not replaced by the library's.
    #[serde(default)]
    pub(super) own_agent: bool,
    pub(super) drive_size_bytes: u64,
    pub(super) files: BTreeMap<String, FileRecord>,
    pub(super) built_at_unix_s: u64,
    /// What the base has, as its own databases say.
    pub(super) packages: Vec<Package>,
    /// What it says of its sandboxes' processes. Images were of one kind before this was written down.
    #[serde(default = "defaults_of_debian")]
    pub(super) defaults: Defaults,
    /// The image that is the base, where that is not made of Debian's packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) oci: Option<OciRecord>,
}

/// An OCI image that became a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OciRecord {
    /// In full.
    pub(super) reference: String,
    /// Of its manifest.
    pub(super) digest: String,
    /// The digests of its layers, the lowest first.
    pub(super) layers: Vec<String>,
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) distribution: Option<Distribution>,
    /// What is in the image and not in `packages`: each a sentence. `None` of an image whose packages were not looked for.
    #[serde(default)]
    pub(super) packages_unread: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub(super) size_bytes: u64,
    /// Less than the size for a sparse file.
    pub(super) allocated_bytes: u64,
    /// Of the whole file; for the drive, of its blocks that are not zero, each after its index.
    pub(super) sha256: String,
}

impl Manifest {
    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(SIZE_BYTES_MAX).read_to_end(&mut bytes))
            .map_err(ImageError::io("read", path))?;
        Self::parse(&bytes, path)
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, ImageError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let broken = |source| ImageError::BrokenManifest { path: path.to_owned(), source };
        let Format { format } = serde_json::from_slice(bytes).map_err(broken)?;
        if format != FORMAT {
            return Err(ImageError::UnknownFormat { path: path.to_owned(), found: format, known: FORMAT });
        }
        serde_json::from_slice(bytes).map_err(broken)
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), ImageError> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other);
        text.and_then(|text| fs::write(path, text)).map_err(ImageError::io("write", path))
    }

    /// Identifies the content: the same files have the same digest, whenever they were built.
    pub(super) fn digest(&self) -> String {
        let lines: String =
            self.files.iter().map(|(name, file)| format!("{name} {} {}\n", file.size_bytes, file.sha256)).collect();
        digest::of_bytes(lines.as_bytes())
    }

    /// Which distribution the base is of.
    pub(super) fn distribution(&self) -> Option<Distribution> {
        match &self.oci {
            Some(oci) => oci.distribution.clone(),
            None => Some(Distribution { id: "debian".to_owned(), version: Some(self.suite.clone()) }),
        }
    }

    /// The file name of the base.
    pub(super) fn base(&self) -> &'static str {
        if self.files.contains_key(BASE_EROFS) { BASE_EROFS } else { BASE_EXT4 }
    }

    /// What the manifest says of a file; an error that names the manifest's directory when it says nothing.
    pub(super) fn record(&self, name: &str, directory: &Path) -> Result<&FileRecord, ImageError> {
        self.files.get(name).ok_or_else(|| ImageError::Damaged {
            path: directory.join(name),
            reason: "the manifest does not list it".to_owned(),
        })
    }
}

impl FileRecord {
    pub(super) fn measure(path: &Path) -> Result<Self, ImageError> {
        let io = || ImageError::io("measure", path);
        let metadata = fs::metadata(path).map_err(io())?;
        let sparse = path.file_name().is_some_and(|name| name == DRIVE);
        let sha256 = if sparse { digest::of_sparse_file(path) } else { digest::of_file(path) };
        Ok(Self { size_bytes: metadata.len(), allocated_bytes: metadata.blocks() * 512, sha256: sha256.map_err(io())? })
    }
}

/// What an image of Debian's packages says of its sandboxes' processes.
pub(super) fn defaults_of_debian() -> Defaults {
    Defaults { user: Some(USER.to_owned()), ..Defaults::default() }
}

/// The user that such a base has for commands.
const USER: &str = "user";

pub(super) const FORMAT: u32 = 1;
pub(super) const MANIFEST: &str = "image.json";
pub(super) const KERNEL: &str = "vmlinuz";
pub(super) const INITRAMFS: &str = "initramfs";
pub(super) const BASE_EXT4: &str = "base.ext4";
pub(super) const BASE_EROFS: &str = "base.erofs";
pub(super) const DRIVE: &str = "drive.ext4";
/// Everything that the manifest of an image with this base lists.
pub(super) fn files(base: &'static str) -> [&'static str; 4] {
    [KERNEL, INITRAMFS, base, DRIVE]
}

const SIZE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_manifest_is_refused_by_name() {
        let path = Path::new("images/base/image.json");
        for bytes in [&b""[..], b"{", b"{\"format\":1}", b"[1]", b"{\"format\":-1}"] {
            let error = Manifest::parse(bytes, path).map_err(|error| error.to_string());
            assert!(error.is_err_and(|text| text.contains("images/base/image.json is broken")));
        }
    }

    #[test]
    fn another_format_is_refused_by_number() {
        let error = Manifest::parse(b"{\"format\":9}", Path::new("image.json"));
        assert!(matches!(error, Err(ImageError::UnknownFormat { found: 9, .. })));
    }

    #[test]
    fn the_digest_does_not_depend_on_when_an_image_was_built() {
        let manifest = |built_at_unix_s, sha256: &str| Manifest {
            format: FORMAT,
            suite: String::new(),
            extra_packages: vec![],
            recipe_sha256: String::new(),
            kernel_release: String::new(),
            kernel_sha256: String::new(),
            kernel_wanted: String::new(),
            kernel_fetched_at_unix_s: 0,
            modules: vec![],
            agent_sha256: String::new(),
            own_agent: false,
            drive_size_bytes: 0,
            files: BTreeMap::from([(
                BASE_EXT4.to_owned(),
                FileRecord { size_bytes: 1, allocated_bytes: 1, sha256: sha256.to_owned() },
            )]),
            built_at_unix_s,
            packages: vec![],
            defaults: Defaults::default(),
            oci: None,
        };
        assert_eq!(manifest(1, "a").digest(), manifest(2, "a").digest());
        assert_ne!(manifest(1, "a").digest(), manifest(1, "b").digest());
    }
}
