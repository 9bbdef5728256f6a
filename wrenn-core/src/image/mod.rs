//! What a sandbox boots from: a kernel, an initramfs with the agent in it, a read-only base, and the template of the
//! drive that each sandbox writes.
//!
//! ```text
//! Image::builder -> ImageBuilder::build -> Image        images/<name>/vmlinuz    the distribution's kernel
//!                                            |                        initramfs  agent and kernel modules
//!                   Image::open -------------|                        base.ext4  shared by every sandbox
//!                                            |                        drive.ext4 sparse; copied for each sandbox
//!                   Image::refresh <---------+                        image.json written last
//! ```
//!
//! # Consistency
//!
//! A published image never changes: a build publishes another directory by one rename, and the files that it did not
//! need to make again are links to the same ones. An image whose base is replaced stays under its digest, since paused
//! sandboxes have that base under their drives.

mod build;
mod builder;
mod digest;
mod error;
mod ext4;
mod initramfs;
mod kernel;
mod lookup;
mod manifest;
mod modules;
mod rootfs;
mod step;
mod store;
mod tools;
pub(crate) mod vmlinux;

use std::path::{Path, PathBuf};

pub use builder::ImageBuilder;
pub use error::ImageError;
pub use step::Step;
pub use tools::{Purpose, Requirement, requirements};

use manifest::{BASE, DRIVE, FILES, FileRecord, INITRAMFS, KERNEL, MANIFEST, Manifest};

/// A complete image on this host's disk.
#[derive(Debug, Clone)]
pub struct Image {
    data_dir: PathBuf,
    directory: PathBuf,
    name: Name,
    manifest: Manifest,
}

impl Image {
    /// Describes an image to [`build`](ImageBuilder::build).
    pub fn builder(name: impl Into<String>) -> ImageBuilder {
        ImageBuilder::new(name.into())
    }

    /// Opens the image `name` of a data directory.
    ///
    /// # Errors
    ///
    /// [`ImageError::NotFound`] when there is none, and by name when its manifest or one of its files is broken. Contents are
    /// not read: [`verify`](Self::verify) does that.
    pub fn open(data_dir: &Path, name: &str) -> Result<Self, ImageError> {
        let name = Name::parse(name)?;
        let directory = store::images(data_dir).join(name.as_str());
        Self::open_in(data_dir, name, directory)
    }

    /// Opens the image that had this [`digest`](Self::digest), which may have been replaced since.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_digest(data_dir: &Path, name: &str, digest: &str) -> Result<Self, ImageError> {
        match Self::open(data_dir, name) {
            Ok(image) if image.digest() == digest => return Ok(image),
            Ok(_) | Err(ImageError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let name = Name::parse(name)?;
        let not_found =
            || ImageError::NotFound { name: format!("{}@{digest}", name.as_str()), images: store::images(data_dir) };
        if !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(not_found());
        }
        let directory = store::images(data_dir).join(store::kept_name(&name, digest));
        match Self::open_in(data_dir, name.clone(), directory) {
            Ok(image) if image.digest() == digest => Ok(image),
            Ok(_) | Err(ImageError::NotFound { .. }) => Err(not_found()),
            Err(error) => Err(error),
        }
    }

    fn open_in(data_dir: &Path, name: Name, directory: PathBuf) -> Result<Self, ImageError> {
        if !directory.exists() {
            return Err(ImageError::NotFound { name: name.0, images: store::images(data_dir) });
        }
        let manifest = Manifest::read(&directory.join(MANIFEST))?;
        for file in FILES {
            let path = directory.join(file);
            let metadata = path.metadata().map_err(ImageError::io("open", &path))?;
            let expected = manifest.record(file, &directory)?.size_bytes;
            if metadata.len() != expected {
                let reason = format!("it has {} bytes, not {expected}", metadata.len());
                return Err(ImageError::Damaged { path, reason });
            }
        }
        Ok(Self { data_dir: data_dir.to_owned(), directory, name, manifest })
    }

    /// Packs the image's initramfs again with another agent; the other files stay the same ones. Returns at once when it
    /// has this agent already.
    ///
    /// # Errors
    ///
    /// When the agent is not a static x86-64 binary, or cannot be written.
    ///
    /// # Cancel-Safety
    ///
    /// As [`ImageBuilder::build`].
    pub async fn refresh(&self, agent: impl Into<PathBuf>) -> Result<Self, ImageError> {
        builder::refresh(self, agent.into()).await
    }

    /// Whether the image has this agent and is what this version of wrenn would build. Reads the agent.
    ///
    /// # Errors
    ///
    /// When the agent is not a static x86-64 binary, or cannot be read.
    pub fn is_current(&self, agent: &Path) -> Result<bool, ImageError> {
        let init = initramfs::Init::read(agent)?;
        let recipe = builder::recipe_of(&self.manifest);
        Ok(init.sha256 == self.manifest.agent_sha256 && recipe.digest() == self.manifest.recipe_sha256)
    }

    /// Reads every file and compares it with the manifest. Takes seconds; blocks the thread.
    ///
    /// # Errors
    ///
    /// [`ImageError::Damaged`] with the first file that differs.
    pub fn verify(&self) -> Result<(), ImageError> {
        for file in FILES {
            let path = self.directory.join(file);
            let measured = FileRecord::measure(&path)?;
            if measured.sha256 != self.manifest.record(file, &self.directory)?.sha256 {
                let reason = "its content has changed".to_owned();
                return Err(ImageError::Damaged { path, reason });
            }
        }
        Ok(())
    }

    /// The image's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The kernel, a bzImage.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.directory.join(KERNEL)
    }

    /// The initramfs, an uncompressed cpio archive.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join(INITRAMFS)
    }

    /// The base file system: ext4, to be mounted read-only.
    #[must_use]
    pub fn base(&self) -> PathBuf {
        self.directory.join(BASE)
    }

    /// The empty writable drive: sparse, to be copied for each sandbox.
    #[must_use]
    pub fn drive_template(&self) -> PathBuf {
        self.directory.join(DRIVE)
    }

    /// The size of the writable drive, in bytes.
    #[must_use]
    pub fn drive_size_bytes(&self) -> u64 {
        self.manifest.drive_size_bytes
    }

    /// Identifies the content of all files, in hexadecimal: the same for the same files.
    #[must_use]
    pub fn digest(&self) -> String {
        self.manifest.digest()
    }

    /// Identifies the base alone, in hexadecimal. A drive that was written over one base is garbage over another; a
    /// [`refresh`](Self::refresh) leaves it as it is.
    #[must_use]
    pub fn base_digest(&self) -> &str {
        let base = self.manifest.files.get(BASE);
        base.map_or("", |file| &file.sha256)
    }

    /// The release of the kernel, like `6.1.0-56-cloud-amd64`.
    #[must_use]
    pub fn kernel_release(&self) -> &str {
        &self.manifest.kernel_release
    }

    /// The packages of the base, each `name version`.
    pub fn packages(&self) -> impl Iterator<Item = &str> {
        self.manifest.packages.iter().map(String::as_str)
    }

    /// The file names of the initramfs's kernel modules, in load order.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.manifest.modules.iter().map(String::as_str)
    }
}

/// An image's name: a directory's, and part of the names of others beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name(String);

impl Name {
    fn parse(name: &str) -> Result<Self, ImageError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let valid = name.len() <= NAME_BYTES_MAX
            && name.bytes().next().is_some_and(plain)
            && name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte));
        if valid { Ok(Self(name.to_owned())) } else { Err(ImageError::Name(name.to_owned())) }
    }

    fn as_str(&self) -> &str {
        &self.0
    }
}

const NAME_BYTES_MAX: usize = 63;
