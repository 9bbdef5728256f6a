//! One build, staged and then published.
//!
//! ```text
//! Store::stage -> links to what is reused -> write_drive -> bootstrap -> Kernel::unpack -> write_base -> pack -> publish
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use super::initramfs;
use crate::image::error::ImageError;
use crate::image::initramfs::Init;
use crate::image::installed::Image;
use crate::image::kernel::Kernel;
use crate::image::manifest::{BASE, DRIVE, FILES, FORMAT, FileRecord, INITRAMFS, KERNEL, MANIFEST, Manifest};
use crate::image::modules::Module;
use crate::image::rootfs::Recipe;
use crate::image::settings::ImageBuilder;
use crate::image::step::Step;
use crate::image::store::{Store, blocking};
use crate::image::{ext4, tools};

/// Which files of the previous image will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// The base, the kernel and its modules: they come from one run.
    pub(super) base: Origin,
    pub(super) drive: Origin,
    pub(super) initramfs: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Reuse,
    Make,
}

impl Origin {
    pub(super) fn reuse_if(same: bool) -> Self {
        if same { Self::Reuse } else { Self::Make }
    }
}

impl Plan {
    pub(super) const CURRENT: Self = Self { base: Origin::Reuse, drive: Origin::Reuse, initramfs: Origin::Reuse };
    pub(super) const INITRAMFS: Self = Self { initramfs: Origin::Make, ..Self::CURRENT };
    pub(super) const EVERYTHING: Self = Self { base: Origin::Make, drive: Origin::Make, initramfs: Origin::Make };

    fn origin(self, file: &str) -> Origin {
        match file {
            DRIVE => self.drive,
            INITRAMFS => self.initramfs,
            _ => self.base,
        }
    }
}

/// One build, under the image's lock.
pub(super) struct Build {
    pub(super) plan: Plan,
    pub(super) init: Init,
    pub(super) previous: Option<Image>,
}

/// What bootstrapping found out and no file shows.
struct Origins {
    recipe_sha256: String,
    kernel_release: String,
    packages: Vec<String>,
    modules: Vec<Module>,
}

impl Build {
    pub(super) async fn run(
        self,
        builder: &ImageBuilder,
        store: Store,
        data_dir: &Path,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Image, ImageError> {
        let (plan, previous) = (self.plan, self.previous.clone());
        let (store, staged) = blocking(data_dir, move || {
            let staged = stage(&store, plan, previous.as_ref())?;
            Ok((store, staged))
        })
        .await?;
        let staging = staged.path().to_owned();
        let scratch = staging.join(SCRATCH);
        if self.plan.drive == Origin::Make {
            progress(&Step::Drive);
            tools::require(&["mke2fs"])?;
            let image = staging.join(DRIVE);
            ext4::write_drive(&scratch, &image, builder.drive_size_bytes).await?;
        }
        let origins = match &self.previous {
            Some(previous) if self.plan.base == Origin::Reuse => {
                let previous = previous.clone();
                blocking(data_dir, move || Origins::of(&previous)).await?
            }
            _ => Origins::make(&builder.recipe, &staging, &scratch, progress).await?,
        };
        if self.plan.initramfs == Origin::Make {
            progress(&Step::Initramfs);
        }
        let (name, kept) = (builder.name.clone(), data_dir.to_owned());
        let builder = builder.clone();
        progress(&Step::Publishing);
        blocking(&staging.clone(), move || {
            if self.plan.initramfs == Origin::Make {
                let path = staging.join(INITRAMFS);
                File::create_new(&path)
                    .and_then(|file| initramfs::pack(&self.init, &origins.modules, BufWriter::new(file)))
                    .map_err(ImageError::io("write", &path))?;
            }
            fs::remove_dir_all(&scratch).map_err(ImageError::io("remove", &scratch))?;
            self.manifest(&builder, origins, &staging)?.write(&staging.join(MANIFEST))?;
            let replaced = match (&self.previous, self.plan.base) {
                (Some(previous), Origin::Make) => Some(previous.digest()),
                _ => None,
            };
            store.publish(staged, replaced.as_deref())?;
            Image::open(&kept, &name)
        })
        .await
    }

    fn manifest(&self, builder: &ImageBuilder, origins: Origins, staging: &Path) -> Result<Manifest, ImageError> {
        let mut files = BTreeMap::new();
        for name in FILES {
            let record = match (&self.previous, self.plan.origin(name)) {
                (Some(image), Origin::Reuse) => image.manifest.record(name, &image.directory)?.clone(),
                _ => FileRecord::measure(&staging.join(name))?,
            };
            files.insert(name.to_owned(), record);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Manifest {
            format: FORMAT,
            suite: builder.recipe.suite.clone(),
            extra_packages: builder.recipe.extra_packages.clone(),
            recipe_sha256: origins.recipe_sha256,
            kernel_release: origins.kernel_release,
            modules: origins.modules.into_iter().map(|module| module.file_name).collect(),
            agent_sha256: self.init.sha256.clone(),
            drive_size_bytes: builder.drive_size_bytes,
            files,
            built_at_unix_s: now.map_or(0, |since| since.as_secs()),
            packages: origins.packages,
        })
    }
}

impl Origins {
    fn of(image: &Image) -> Result<Self, ImageError> {
        let path = image.initramfs();
        let modules = fs::read(&path).and_then(|archive| initramfs::modules(&archive));
        Ok(Self {
            recipe_sha256: image.manifest.recipe_sha256.clone(),
            kernel_release: image.manifest.kernel_release.clone(),
            packages: image.manifest.packages.clone(),
            modules: modules.map_err(ImageError::io("read", &path))?,
        })
    }

    async fn make(
        recipe: &Recipe,
        staging: &Path,
        scratch: &Path,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Self, ImageError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(ImageError::NotRoot);
        }
        tools::require(&["mke2fs", "dpkg-deb", "dpkg-query"])?;
        let measured = staging.to_owned();
        blocking(staging, move || check_space(&measured)).await?;
        progress(&Step::Bootstrapping { suite: recipe.suite.clone() });
        let rootfs = recipe.bootstrap(scratch, progress).await?;
        progress(&Step::Kernel);
        let kernel = Kernel::unpack(&rootfs.kernel_packages, scratch).await?;
        let kept = staging.join(KERNEL);
        let (release, modules) = blocking(staging, move || {
            fs::copy(&kernel.vmlinuz, kept).map_err(ImageError::io("copy", &kernel.vmlinuz))?;
            Ok((kernel.release.clone(), kernel.modules()?))
        })
        .await?;
        progress(&Step::Base);
        ext4::write_base(&rootfs.root, &staging.join(BASE)).await?;
        Ok(Self { recipe_sha256: recipe.digest(), kernel_release: release, packages: rootfs.packages, modules })
    }
}

/// A directory with a place for scratch, and links to what is reused of the image before.
fn stage(store: &Store, plan: Plan, previous: Option<&Image>) -> Result<TempDir, ImageError> {
    let staged = store.stage()?;
    let scratch = staged.path().join(SCRATCH);
    fs::create_dir(&scratch).map_err(ImageError::io("create", &scratch))?;
    for file in FILES {
        if let (Some(previous), Origin::Reuse) = (previous, plan.origin(file)) {
            let link = staged.path().join(file);
            fs::hard_link(previous.directory.join(file), &link).map_err(ImageError::io("link", &link))?;
        }
    }
    Ok(staged)
}

fn check_space(staging: &Path) -> Result<(), ImageError> {
    let space = statvfs(staging).map_err(|errno| ImageError::io("measure", staging)(errno.into()))?;
    let available_bytes = space.blocks_available() * space.fragment_size();
    if available_bytes < SPACE_BYTES {
        return Err(ImageError::NoSpace { path: staging.to_owned(), needed_bytes: SPACE_BYTES, available_bytes });
    }
    Ok(())
}

const SCRATCH: &str = "scratch";
/// The tree, its packages, the kernel's, and the base image, all at once, with room to spare.
const SPACE_BYTES: u64 = 1536 << 20;
