//! The kernel that guests boot. The images of a data directory share it, whatever their bases are.
//!
//! ```text
//! kernels/.lock-bookworm       held by whoever fetches the kernel of `bookworm`
//! kernels/bookworm/vmlinuz     linked into the images that were built with it
//! kernels/bookworm/modules     what the guests need of its modules, a cpio archive
//! kernels/bookworm/kernel.json
//! ```
//!
//! A kernel is replaced whole, by one rename. Images that have an older one keep it until they are built again.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::image::error::ImageError;
use crate::image::kernel_package::KernelPackage;
use crate::image::manifest::KERNEL;
use crate::image::modules::{self, Module};
use crate::image::name::Name;
use crate::image::staged::Staged;
use crate::image::step::Step;
use crate::image::store::{self, Store, blocking};
use crate::image::{digest, initramfs, scratch};

/// A kernel of a data directory's.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    directory: PathBuf,
    record: Record,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    /// The file name of its package.
    package: String,
    release: String,
    /// [`modules::wanted_digest`] of the library that fetched it.
    wanted: String,
    vmlinuz_sha256: String,
    modules_sha256: String,
    fetched_at_unix_s: u64,
}

/// Whether a kernel that is there is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Any will do.
    Kept,
    /// Debian is asked for a newer one.
    Newest,
}

impl Kernel {
    /// The kernel of a suite, fetched where there is none, or where another is wanted.
    pub(super) async fn ensure(
        data_dir: &Path,
        suite: &str,
        freshness: Freshness,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Self, ImageError> {
        let name = Name::parse(suite)?;
        let store = Store::lock(store::kernels(data_dir), &name, progress).await?;
        // Another build may have fetched it meanwhile.
        let (here, named) = (data_dir.to_owned(), suite.to_owned());
        let kept = blocking(data_dir, move || Self::open(&here, &named)).await?;
        if let (Some(kernel), Freshness::Kept) = (&kept, freshness) {
            return Ok(kernel.clone());
        }
        progress(&Step::Kernel);
        let (staged, scratch) = blocking(data_dir, move || {
            let staged = Staged::new(store.stage()?, store);
            let scratch = staged.path().join(SCRATCH);
            fs::create_dir(&scratch).map_err(ImageError::io("create", &scratch))?;
            Ok((staged, scratch))
        })
        .await?;
        let package = match KernelPackage::fetch(suite, &scratch).await {
            Ok(package) => package,
            Err(error) => {
                staged.remove().await;
                return Err(error);
            }
        };
        if let Some(kernel) = kept.filter(|kernel| kernel.record.package == package.file_name) {
            staged.remove().await;
            return Ok(kernel);
        }
        let (here, named) = (data_dir.to_owned(), suite.to_owned());
        blocking(data_dir, move || {
            Record::make(&package, &staged.path())?.write(&staged.path().join(RECORD))?;
            scratch::remove(&scratch).map_err(ImageError::io("remove", &scratch))?;
            staged.publish(None)?;
            Self::open(&here, &named)?.ok_or_else(|| ImageError::Kernel("it is gone again".to_owned()))
        })
        .await
    }

    /// The kernel of a suite that is there, and has what this library's guests need. Blocks.
    pub(super) fn open(data_dir: &Path, suite: &str) -> Result<Option<Self>, ImageError> {
        let directory = store::kernels(data_dir).join(suite);
        let path = directory.join(RECORD);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(ImageError::io("read", &path))?,
        };
        let record: Record = match serde_json::from_slice(&text) {
            Ok(record) => record,
            // It can be fetched again.
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a kernel's record is broken; the kernel is fetched anew");
                return Ok(None);
            }
        };
        let fits = record.format == FORMAT && record.wanted == modules::wanted_digest();
        Ok(fits.then_some(Self { directory, record }))
    }

    /// The file name of its package.
    pub(super) fn package(&self) -> &str {
        &self.record.package
    }

    pub(super) fn release(&self) -> &str {
        &self.record.release
    }

    /// Identifies the kernel and its modules.
    pub(super) fn digest(&self) -> String {
        digest::of_bytes(format!("{} {}", self.record.vmlinuz_sha256, self.record.modules_sha256).as_bytes())
    }

    /// When it was fetched, in seconds since 1970.
    pub(super) fn fetched_at_unix_s(&self) -> u64 {
        self.record.fetched_at_unix_s
    }

    pub(super) fn vmlinuz(&self) -> PathBuf {
        self.directory.join(KERNEL)
    }

    /// Its modules, in load order, checked. Blocks.
    pub(super) fn modules(&self) -> Result<Vec<Module>, ImageError> {
        let path = self.directory.join(MODULES);
        let archive = fs::read(&path).map_err(ImageError::io("read", &path))?;
        if digest::of_bytes(&archive) != self.record.modules_sha256 {
            let reason =
                format!("its content has changed: remove {}, and it is fetched anew", self.directory.display());
            return Err(ImageError::Damaged { path, reason });
        }
        initramfs::modules(&archive).map_err(ImageError::io("read", &path))
    }
}

impl Record {
    /// Writes the kernel's files to `directory`. Blocks.
    fn make(package: &KernelPackage, directory: &Path) -> Result<Self, ImageError> {
        let (vmlinuz, archive) = (directory.join(KERNEL), directory.join(MODULES));
        fs::copy(&package.vmlinuz, &vmlinuz).map_err(ImageError::io("copy", &package.vmlinuz))?;
        let modules = package.modules()?;
        File::create_new(&archive)
            .and_then(|file| initramfs::pack_modules(&modules, BufWriter::new(file)))
            .map_err(ImageError::io("write", &archive))?;
        let measured = |path: &Path| digest::of_file(path).map_err(ImageError::io("measure", path));
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            format: FORMAT,
            package: package.file_name.clone(),
            release: package.release.clone(),
            wanted: modules::wanted_digest(),
            vmlinuz_sha256: measured(&vmlinuz)?,
            modules_sha256: measured(&archive)?,
            fetched_at_unix_s: now.map_or(0, |since| since.as_secs()),
        })
    }

    fn write(&self, path: &Path) -> Result<(), ImageError> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other);
        text.and_then(|text| fs::write(path, text)).map_err(ImageError::io("write", path))
    }
}

const FORMAT: u32 = 1;
const RECORD: &str = "kernel.json";
const MODULES: &str = "modules";
const SCRATCH: &str = "scratch";
