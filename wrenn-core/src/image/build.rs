//! One build, staged and then published.
//!
//! ```text
//!                                                         +-> bootstrap -> write_base -+
//! Store::stage -> links to what is reused -> write_drive -+                            +-> pack -> publish
//!                                                         +-> Kernel::ensure ----------+
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use super::initramfs;
use crate::defaults::Defaults;
use crate::image::error::ImageError;
use crate::image::initramfs::Init;
use crate::image::installed::Image;
use crate::image::kernel::{Freshness, Kernel};
use crate::image::manifest::{
    BASE_EXT4, DRIVE, FORMAT, FileRecord, INITRAMFS, KERNEL, MANIFEST, Manifest, OciRecord, defaults_of_debian, files,
};
use crate::image::modules::{self, Module};
use crate::image::oci_settings::OciSettings;
use crate::image::rootfs::Recipe;
use crate::image::settings::ImageBuilder;
use crate::image::staged::Staged;
use crate::image::step::Step;
use crate::image::store::{self, Store, blocking};
use crate::image::{ext4, scratch, tools};
use crate::oci::package::Package;
use crate::oci::{self, ImageConfig, Progress};

/// Which files of the previous image will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) base: Origin,
    /// The kernel and its modules.
    pub(super) kernel: Origin,
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
    pub(super) const CURRENT: Self =
        Self { base: Origin::Reuse, kernel: Origin::Reuse, drive: Origin::Reuse, initramfs: Origin::Reuse };
    pub(super) const INITRAMFS: Self = Self { initramfs: Origin::Make, ..Self::CURRENT };
    pub(super) const EVERYTHING: Self =
        Self { base: Origin::Make, kernel: Origin::Make, drive: Origin::Make, initramfs: Origin::Make };

    fn origin(self, file: &str) -> Origin {
        match file {
            DRIVE => self.drive,
            INITRAMFS => self.initramfs,
            KERNEL => self.kernel,
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

/// What was found out on the way, and no file shows.
struct Found {
    base: FoundBase,
    kernel: FoundKernel,
}

struct FoundBase {
    recipe_sha256: String,
    packages: Vec<Package>,
    defaults: Defaults,
    oci: Option<OciRecord>,
}

struct FoundKernel {
    release: String,
    sha256: String,
    wanted: String,
    fetched_at_unix_s: u64,
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
        let staged = blocking(data_dir, move || {
            let directory = stage(&store, plan, previous.as_ref())?;
            Ok(Staged::new(directory, store))
        })
        .await?;
        let staging = staged.path();
        match self.fill(builder, &staging, data_dir, progress).await {
            Ok(found) => self.finish(builder, found, staging, staged, data_dir, progress).await,
            Err(error) => {
                staged.remove().await;
                Err(error)
            }
        }
    }

    /// Makes what takes long: the drive, the base and the kernel.
    async fn fill(
        &self,
        builder: &ImageBuilder,
        staging: &Path,
        data_dir: &Path,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Found, ImageError> {
        let scratch = staging.join(SCRATCH);
        if self.plan.drive == Origin::Make {
            progress(&Step::Drive);
            tools::require(&["mke2fs"])?;
            let image = staging.join(DRIVE);
            ext4::write_drive(&scratch, &image, builder.drive_size_bytes).await?;
        }
        // Both report.
        let progress = Mutex::new(progress);
        let report = |step: &Step| {
            if let Ok(mut progress) = progress.lock() {
                progress(step);
            }
        };
        let (mut of_base, mut of_kernel) = (report, report);
        let base = async {
            match &self.previous {
                Some(previous) if self.plan.base == Origin::Reuse => Ok(FoundBase::of(previous)),
                _ => FoundBase::make(builder, data_dir, staging, &mut of_base).await,
            }
        };
        let kernel = async {
            match &self.previous {
                Some(previous) if self.plan.kernel == Origin::Reuse => {
                    let previous = previous.clone();
                    blocking(data_dir, move || FoundKernel::of(&previous)).await
                }
                _ => {
                    let (suite, freshness) = (builder.kernel_suite(), Freshness::Kept);
                    let kernel = Kernel::ensure(data_dir, suite, freshness, &mut of_kernel).await?;
                    let link = staging.join(KERNEL);
                    blocking(data_dir, move || FoundKernel::link(&kernel, &link)).await
                }
            }
        };
        let (base, kernel) = tokio::try_join!(base, kernel)?;
        Ok(Found { base, kernel })
    }

    /// Makes the initramfs and the manifest, and publishes the image.
    async fn finish(
        self,
        builder: &ImageBuilder,
        found: Found,
        staging: PathBuf,
        staged: Staged,
        data_dir: &Path,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Image, ImageError> {
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
                    .and_then(|file| initramfs::pack(&self.init, &found.kernel.modules, BufWriter::new(file)))
                    .map_err(ImageError::io("write", &path))?;
            }
            let scratch = staging.join(SCRATCH);
            scratch::remove(&scratch).map_err(ImageError::io("remove", &scratch))?;
            self.manifest(&builder, found, &staging)?.write(&staging.join(MANIFEST))?;
            let replaced = match (&self.previous, self.plan.base) {
                (Some(previous), Origin::Make) => Some(previous.digest()),
                _ => None,
            };
            staged.publish(replaced.as_deref())?;
            Image::open(&kept, &name)
        })
        .await
    }

    fn manifest(&self, builder: &ImageBuilder, found: Found, staging: &Path) -> Result<Manifest, ImageError> {
        let mut records = BTreeMap::new();
        for name in files(builder.base_file()) {
            let record = match (&self.previous, self.plan.origin(name)) {
                (Some(image), Origin::Reuse) => image.manifest.record(name, &image.directory)?.clone(),
                _ => FileRecord::measure(&staging.join(name))?,
            };
            records.insert(name.to_owned(), record);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Manifest {
            format: FORMAT,
            suite: builder.suite.clone(),
            extra_packages: builder.packages.clone(),
            recipe_sha256: found.base.recipe_sha256,
            kernel_release: found.kernel.release,
            kernel_sha256: found.kernel.sha256,
            kernel_wanted: found.kernel.wanted,
            kernel_fetched_at_unix_s: found.kernel.fetched_at_unix_s,
            modules: found.kernel.modules.into_iter().map(|module| module.file_name).collect(),
            agent_sha256: self.init.sha256.clone(),
            own_agent: self.init.own,
            drive_size_bytes: builder.drive_size_bytes,
            files: records,
            built_at_unix_s: now.map_or(0, |since| since.as_secs()),
            packages: found.base.packages,
            defaults: found.base.defaults,
            oci: found.base.oci,
        })
    }
}

impl FoundBase {
    fn of(image: &Image) -> Self {
        let Manifest { recipe_sha256, packages, defaults, oci, .. } = image.manifest.clone();
        Self { recipe_sha256, packages, defaults, oci }
    }

    async fn make(
        builder: &ImageBuilder,
        data_dir: &Path,
        staging: &Path,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Self, ImageError> {
        match &builder.oci {
            Some(oci) => Self::pull(oci, data_dir, &staging.join(builder.base_file()), progress).await,
            None => Self::bootstrap(&builder.recipe(), staging, progress).await,
        }
    }

    async fn bootstrap(
        recipe: &Recipe,
        staging: &Path,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Self, ImageError> {
        scratch::check_ids()?;
        tools::require(&["mke2fs", "dpkg-query"])?;
        let measured = staging.to_owned();
        blocking(staging, move || check_space(&measured)).await?;
        progress(&Step::Bootstrapping { suite: recipe.suite.clone() });
        let rootfs = recipe.bootstrap(&staging.join(SCRATCH), progress).await?;
        progress(&Step::Base);
        ext4::write_base(&rootfs.root, &staging.join(BASE_EXT4)).await?;
        let (packages, defaults) = (rootfs.packages, defaults_of_debian());
        Ok(Self { recipe_sha256: recipe.digest(), packages, defaults, oci: None })
    }

    async fn pull(
        oci: &OciSettings,
        data_dir: &Path,
        base: &Path,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Self, ImageError> {
        let source = oci.source()?;
        progress(&Step::Pulling { reference: source.to_string() });
        let mut report = |part: Progress| progress(&Step::from(part));
        let layers = store::layers(data_dir);
        let made = oci::make_base(&source, &oci.pull, &layers, base, &mut report).await?;
        let record = OciRecord {
            reference: made.reference,
            digest: made.digest,
            layers: made.layers.into_iter().map(|layer| layer.digest).collect(),
            labels: made.config.labels.clone(),
            distribution: made.packages.distribution,
            packages_unread: Some(made.packages.unread),
        };
        let defaults = defaults_of(made.config);
        let packages = made.packages.packages;
        Ok(Self { recipe_sha256: oci.digest()?, packages, defaults, oci: Some(record) })
    }
}

/// What the configuration of an OCI image says of processes.
fn defaults_of(config: ImageConfig) -> Defaults {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let variable = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    Defaults {
        env: config.env.iter().filter_map(variable).collect(),
        user: some(config.user).or_else(|| Some("root".to_owned())),
        workdir: some(config.working_dir).or_else(|| Some("/".to_owned())),
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        exposed_ports: config.exposed_ports.into_iter().collect(),
        stop_signal: config.stop_signal,
    }
}

impl FoundKernel {
    /// Blocks.
    fn of(image: &Image) -> Result<Self, ImageError> {
        let path = image.initramfs();
        let modules = fs::read(&path).and_then(|archive| initramfs::modules(&archive));
        Ok(Self {
            release: image.manifest.kernel_release.clone(),
            sha256: image.manifest.kernel_sha256.clone(),
            wanted: image.manifest.kernel_wanted.clone(),
            fetched_at_unix_s: image.manifest.kernel_fetched_at_unix_s,
            modules: modules.map_err(ImageError::io("read", &path))?,
        })
    }

    /// Blocks.
    fn link(kernel: &Kernel, link: &Path) -> Result<Self, ImageError> {
        link_or_copy(&kernel.vmlinuz(), link).map_err(ImageError::io("link", link))?;
        Ok(Self {
            release: kernel.release().to_owned(),
            sha256: kernel.digest(),
            wanted: modules::wanted_digest(),
            fetched_at_unix_s: kernel.fetched_at_unix_s(),
            modules: kernel.modules()?,
        })
    }
}

/// A link, or a copy where the two are on different file systems.
fn link_or_copy(file: &Path, link: &Path) -> io::Result<()> {
    match fs::hard_link(file, link) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => fs::copy(file, link).map(drop),
        linked => linked,
    }
}

/// A directory with a place for scratch, and links to what is reused of the image before.
fn stage(store: &Store, plan: Plan, previous: Option<&Image>) -> Result<TempDir, ImageError> {
    let staged = store.stage()?;
    let scratch = staged.path().join(SCRATCH);
    fs::create_dir(&scratch).map_err(ImageError::io("create", &scratch))?;
    let Some(previous) = previous else { return Ok(staged) };
    for file in files(previous.manifest.base()) {
        if plan.origin(file) == Origin::Reuse {
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
