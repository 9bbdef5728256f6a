//! An image on this host's disk.

use crate::defaults::Defaults;
use crate::image::error::ImageError;
use crate::image::name::Name;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::image::manifest::{DRIVE, FileRecord, INITRAMFS, KERNEL, MANIFEST, Manifest, files};
use crate::image::store;
use crate::oci::package::Package;

/// A complete image on this host's disk. Clones are the same image.
///
/// ```no_run
/// # fn demo() -> Result<(), wrenn_core::image::ImageError> {
/// use wrenn_core::image::Image;
///
/// let data_dir = wrenn_core::default_data_dir();
/// for name in Image::names(&data_dir)? {
///     let image = Image::open(&data_dir, &name)?;
///     println!("{name}: kernel {}, {} packages", image.kernel_release(), image.packages().count());
/// }
/// # Ok(()) }
/// ```
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
    /// [`ImageError::NotFound`] where there is no such image. [`ImageError::BrokenManifest`],
    /// [`ImageError::UnknownFormat`] or [`ImageError::Damaged`] where the manifest cannot be read or a file does not
    /// have the size that the manifest names. The contents of the files are not read: [`verify`](Self::verify) reads
    /// them.
    pub fn open(data_dir: &Path, name: &str) -> Result<Self, ImageError> {
        let name = Name::parse(name)?;
        let directory = store::images(data_dir).join(name.as_str());
        Self::open_in(data_dir, name, directory)
    }

    /// Notes that the image is used, as the time of its manifest's file.
    pub(super) fn note_use(&self) {
        let path = self.directory.join(MANIFEST);
        let noted = File::options().write(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = noted {
            tracing::debug!(error = &error as &dyn std::error::Error, "the use of an image was not noted");
        }
    }

    /// When the image was built, or last asked for by who would have built it.
    pub(crate) fn asked_for_at(&self) -> Result<SystemTime, ImageError> {
        let path = self.directory.join(MANIFEST);
        path.metadata().and_then(|metadata| metadata.modified()).map_err(ImageError::io("look at", &path))
    }

    /// Opens the image `name` with this [`digest`](Self::digest), even if another build has replaced it and its base
    /// since.
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
        for file in files(manifest.base()) {
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

    /// Reads every file and compares it with the manifest. It blocks the thread for some seconds.
    ///
    /// # Errors
    ///
    /// [`ImageError::Damaged`] with the first file that differs, [`ImageError::Io`] where a file cannot be read.
    pub fn verify(&self) -> Result<(), ImageError> {
        for file in files(self.manifest.base()) {
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

    /// The path of the kernel, a bzImage.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.directory.join(KERNEL)
    }

    /// The path of the initramfs, an uncompressed cpio archive.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join(INITRAMFS)
    }

    /// The path of the base, a file system that is mounted read-only: EROFS of an OCI image, ext4 of Debian's packages.
    #[must_use]
    pub fn base(&self) -> PathBuf {
        self.directory.join(self.manifest.base())
    }

    /// The path of the empty writable drive, a sparse file that is copied for each sandbox.
    #[must_use]
    pub fn drive_template(&self) -> PathBuf {
        self.directory.join(DRIVE)
    }

    /// The size of the writable drive, in bytes.
    #[must_use]
    pub fn drive_size_bytes(&self) -> u64 {
        self.manifest.drive_size_bytes
    }

    /// The digest of all files, in hexadecimal. Images with the same files have the same digest.
    #[must_use]
    pub fn digest(&self) -> String {
        self.manifest.digest()
    }

    /// The digest of the base alone, in hexadecimal. A drive that was written over one base cannot be used over
    /// another. [Renewing](Self::renew) an image keeps the base.
    #[must_use]
    pub fn base_digest(&self) -> &str {
        let base = self.manifest.files.get(self.manifest.base());
        base.map_or("", |file| &file.sha256)
    }

    /// The release of the kernel, for instance `6.1.0-56-cloud-amd64`.
    #[must_use]
    pub fn kernel_release(&self) -> &str {
        &self.manifest.kernel_release
    }

    /// When the image was built.
    #[must_use]
    pub fn built_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.manifest.built_at_unix_s)
    }

    /// When its kernel was fetched from Debian; `None` in an image of an earlier wrenn.
    #[must_use]
    pub fn kernel_fetched_at(&self) -> Option<SystemTime> {
        let seconds = self.manifest.kernel_fetched_at_unix_s;
        (seconds > 0).then(|| UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// The packages of the base, as the databases of `dpkg` and `apk` in it have them. RPM's are not read, and an OCI image
    /// that an earlier wrenn pulled has none until it is pulled with [`refresh`](crate::image::ImageBuilder::refresh).
    pub fn packages(&self) -> impl Iterator<Item = &Package> {
        self.manifest.packages.iter()
    }

    /// The reference of the OCI image that is the base, in full; `None` where the base is made of Debian's packages.
    #[must_use]
    pub fn reference(&self) -> Option<&str> {
        self.manifest.oci.as_ref().map(|oci| oci.reference.as_str())
    }

    /// The digest of that image's manifest, `sha256:` and 64 digits; of the files, where it came from no registry.
    #[must_use]
    pub fn reference_digest(&self) -> Option<&str> {
        self.manifest.oci.as_ref().map(|oci| oci.digest.as_str())
    }

    /// The labels of that image.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let labels = self.manifest.oci.iter().flat_map(|oci| &oci.labels);
        labels.map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// What the image says of its sandboxes' processes: their environment, user and working directory.
    #[must_use]
    pub fn defaults(&self) -> &Defaults {
        &self.manifest.defaults
    }

    /// The file names of the kernel modules in the initramfs, in the order in which they are loaded.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.manifest.modules.iter().map(String::as_str)
    }
}
