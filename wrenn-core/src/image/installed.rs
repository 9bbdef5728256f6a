//! An image on this host's disk.

use crate::image::error::ImageError;
use crate::image::name::Name;
use std::path::{Path, PathBuf};

use crate::image::manifest::{BASE, DRIVE, FILES, FileRecord, INITRAMFS, KERNEL, MANIFEST, Manifest};
use crate::image::store;

/// A complete image on this host's disk.
#[derive(Debug, Clone)]
pub struct Image {
    pub(super) data_dir: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) name: Name,
    pub(super) manifest: Manifest,
}

impl Image {
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
            return Err(ImageError::NotFound { name: name.as_str().to_owned(), images: store::images(data_dir) });
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
