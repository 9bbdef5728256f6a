//! Images for tests, and what is in a directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tar::{EntryType, Header};

use crate::oci::digest::Digest;

/// An archive in the making.
pub(super) struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    pub(super) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(super) fn entry(mut self, kind: EntryType, name: &str, target: &str, bytes: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        // The crate's own setter refuses what a hostile archive has.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o640 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_700_000_000);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        self.0.append(&header, bytes).unwrap();
        self
    }

    pub(super) fn file(self, name: &str, bytes: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", bytes)
    }

    pub(super) fn directory(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    pub(super) fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"")
    }

    /// Records for the entry that follows.
    pub(super) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image: its blobs and the bytes of its manifest.
#[derive(Clone)]
pub(super) struct TestImage {
    pub(super) blobs: BTreeMap<String, Vec<u8>>,
    pub(super) manifest: Vec<u8>,
    pub(super) layers: Vec<Vec<u8>>,
}

impl TestImage {
    /// Of archives, each with how it is compressed.
    pub(super) fn new(archives: &[Vec<u8>]) -> Self {
        Self::with(archives, "amd64", |diff_ids| diff_ids)
    }

    pub(super) fn with(archives: &[Vec<u8>], architecture: &str, change: impl Fn(Vec<String>) -> Vec<String>) -> Self {
        let diff_ids: Vec<String> = archives.iter().map(|archive| Digest::of(archive).to_string()).collect();
        let config = json!({"architecture": architecture, "os": "linux", "config": {"Env": ["A=b"], "Cmd": ["/run"]},
            "rootfs": {"type": "layers", "diff_ids": change(diff_ids)}});
        let config = serde_json::to_vec(&config).unwrap();
        // One of each compression.
        let compress = |(number, archive): (usize, &Vec<u8>)| match number % 3 {
            0 => ("application/vnd.oci.image.layer.v1.tar+gzip", gzip(archive)),
            1 => ("application/vnd.oci.image.layer.v1.tar+zstd", zstd::encode_all(archive.as_slice(), 3).unwrap()),
            _ => ("application/vnd.oci.image.layer.v1.tar", archive.clone()),
        };
        let layers: Vec<(&str, Vec<u8>)> = archives.iter().enumerate().map(compress).collect();
        let describe = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|(kind, bytes)| describe(kind, bytes)).collect::<Vec<_>>()});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let layers: Vec<Vec<u8>> = layers.into_iter().map(|(_, bytes)| bytes).collect();
        let all = layers.iter().cloned().chain([config, manifest.clone()]);
        Self { blobs: all.map(|bytes| (Digest::of(&bytes).hex(), bytes)).collect(), manifest, layers }
    }

    pub(super) fn digest(&self) -> String {
        Digest::of(&self.manifest).to_string()
    }

    /// As a directory of the OCI layout.
    pub(super) fn layout(&self, directory: &Path) -> PathBuf {
        let layout = directory.join("layout");
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        for (name, bytes) in &self.blobs {
            fs::write(layout.join("blobs/sha256").join(name), bytes).unwrap();
        }
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.digest(), "size": self.manifest.len(), "annotations": {"org.opencontainers.image.ref.name": "tag"}}]});
        fs::write(layout.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        layout
    }
}

/// Every file below a directory with everything about it but its times and where its names are the same file.
pub(super) fn listing(root: &Path) -> BTreeMap<String, String> {
    let (mut found, mut pending) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let content = match meta.file_type() {
            kind if kind.is_dir() => {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                "directory".to_owned()
            }
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
            kind if kind.is_file() => format!("{} of {}", Digest::of(&fs::read(&path).unwrap()), meta.len()),
            _ => format!("{:x}", meta.rdev()),
        };
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let about = format!(
            "{:o} {}:{} {} links {} {content} {:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            links,
            meta.mtime(),
            xattrs(&path)
        );
        found.insert(name, about);
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let with_value = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
        (String::from_utf8_lossy(name).into_owned(), value[..length].to_vec())
    };
    names.map(with_value).collect()
}

/// A mounted base, for as long as it lives.
pub(super) struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None` where this machine cannot mount one, which is printed.
    pub(super) fn new(base: &Path, test: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "erofs", "-o", "loop,ro"]).arg(base).arg(directory.path());
        if !rustix::process::geteuid().is_root() || !fs::read_to_string("/proc/filesystems").unwrap().contains("erofs")
        {
            println!("skipped: {test}: a mount needs root and a kernel with EROFS");
            return None;
        }
        let said = mount.output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        Some(Self(directory))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().ok();
    }
}
