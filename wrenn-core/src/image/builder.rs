use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::statvfs::statvfs;
use tokio::task::spawn_blocking;

use super::initramfs::{self, Init};
use super::kernel::Kernel;
use super::manifest::{BASE, DRIVE, FILES, FORMAT, FileRecord, INITRAMFS, KERNEL, MANIFEST, Manifest};
use super::modules::Module;
use super::rootfs::Recipe;
use super::store::Store;
use super::{Image, ImageError, Name, Step, ext4, tools};

/// What an image shall be. Made by [`Image::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ImageBuilder {
    name: String,
    agent: Option<PathBuf>,
    recipe: Recipe,
    drive_size_bytes: u64,
}

impl ImageBuilder {
    pub(super) fn new(name: String) -> Self {
        let recipe = Recipe { suite: "bookworm".to_owned(), extra_packages: Vec::new() };
        Self { name, agent: None, recipe, drive_size_bytes: DRIVE_SIZE_BYTES }
    }

    /// The agent's binary, static and for x86-64. There is no default.
    pub fn agent(mut self, path: impl Into<PathBuf>) -> Self {
        self.agent = Some(path.into());
        self
    }

    /// The size of each sandbox's writable drive, in bytes: 4 GiB by default. It is sparse, and costs what is written.
    pub fn drive_size_bytes(mut self, size_bytes: u64) -> Self {
        self.drive_size_bytes = size_bytes;
        self
    }

    /// The Debian release, by code name: `bookworm` by default.
    pub fn suite(mut self, suite: impl Into<String>) -> Self {
        self.recipe.suite = suite.into();
        self
    }

    /// One more Debian package in the base. Each makes the base larger, and a change of them makes it anew.
    pub fn package(mut self, package: impl Into<String>) -> Self {
        self.recipe.extra_packages.push(package.into());
        self
    }

    /// Builds the image, or as much of it as is not there yet: a base takes about a minute, network and root, another
    /// agent or drive size a fraction of a second, and no change nothing.
    ///
    /// # Errors
    ///
    /// An existing image that cannot be opened is an error too, and is left as it is: paused sandboxes may need its base.
    ///
    /// # Cancel-Safety
    ///
    /// Programs that were started are killed and what was staged is removed; an existing image is untouched.
    pub async fn build(&self, data_dir: &Path, mut progress: impl FnMut(&Step) + Send) -> Result<Image, ImageError> {
        let name = Name::parse(&self.name)?;
        self.check()?;
        let Some(agent) = self.agent.clone() else {
            return Err(setting("agent", "", "a static x86-64 binary"));
        };
        let init = blocking(&agent.clone(), move || Init::read(&agent)).await?;
        let store = Store::lock(data_dir, &name, &mut progress).await?;
        let previous = match Image::open(data_dir, &self.name) {
            Ok(image) => Some(image),
            Err(ImageError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let plan = self.plan(previous.as_ref().map(|image| &image.manifest), &init);
        if let (Some(image), Plan::CURRENT) = (&previous, plan) {
            progress(&Step::Current);
            return Ok(image.clone());
        }
        let build = Build { plan, init, previous };
        build.run(self, store, data_dir, &mut progress).await
    }

    /// What of `manifest`'s image will do.
    fn plan(&self, manifest: Option<&Manifest>, init: &Init) -> Plan {
        let Some(manifest) = manifest else {
            return Plan::EVERYTHING;
        };
        let base = Origin::reuse_if(manifest.recipe_sha256 == self.recipe.digest());
        let same_init = base == Origin::Reuse && manifest.agent_sha256 == init.sha256;
        Plan {
            base,
            drive: Origin::reuse_if(manifest.drive_size_bytes == self.drive_size_bytes),
            initramfs: Origin::reuse_if(same_init),
        }
    }

    /// The settings become arguments of programs, so they are checked before any runs.
    fn check(&self) -> Result<(), ImageError> {
        let word = |text: &str, more: &[u8]| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            text.bytes().next().is_some_and(plain) && text.bytes().all(|byte| plain(byte) || more.contains(&byte))
        };
        if !word(&self.recipe.suite, b"-") {
            return Err(setting("suite", &self.recipe.suite, "a code name, like `bookworm`"));
        }
        for package in &self.recipe.extra_packages {
            if !word(package, b"+.-") {
                return Err(setting("package", package, "a Debian package's name"));
            }
        }
        let size = self.drive_size_bytes;
        if !DRIVE_SIZES_BYTES.contains(&size) || !size.is_multiple_of(4096) {
            return Err(setting("drive_size_bytes", &size.to_string(), "a multiple of 4096 from 16 MiB to 8 TiB"));
        }
        Ok(())
    }
}

/// Makes the initramfs again and nothing else, even if this version of wrenn would build another base.
pub(super) async fn refresh(image: &Image, agent: PathBuf) -> Result<Image, ImageError> {
    let init = blocking(&agent.clone(), move || Init::read(&agent)).await?;
    let store = Store::lock(&image.data_dir, &image.name, &mut |_: &Step| {}).await?;
    // It may have been replaced, even by the same refresh, while this one waited.
    let image = Image::open(&image.data_dir, image.name.as_str())?;
    if init.sha256 == image.manifest.agent_sha256 {
        return Ok(image);
    }
    let builder = ImageBuilder {
        name: image.name.as_str().to_owned(),
        agent: None,
        recipe: recipe_of(&image.manifest),
        drive_size_bytes: image.manifest.drive_size_bytes,
    };
    let data_dir = image.data_dir.clone();
    let build = Build { plan: Plan::INITRAMFS, init, previous: Some(image) };
    build.run(&builder, store, &data_dir, &mut |_: &Step| {}).await
}

/// What this version of wrenn would make for the same settings.
pub(super) fn recipe_of(manifest: &Manifest) -> Recipe {
    Recipe { suite: manifest.suite.clone(), extra_packages: manifest.extra_packages.clone() }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// The base, the kernel and its modules: they come from one run.
    base: Origin,
    drive: Origin,
    initramfs: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Reuse,
    Make,
}

impl Origin {
    fn reuse_if(same: bool) -> Self {
        if same { Self::Reuse } else { Self::Make }
    }
}

impl Plan {
    const CURRENT: Self = Self { base: Origin::Reuse, drive: Origin::Reuse, initramfs: Origin::Reuse };
    const INITRAMFS: Self = Self { initramfs: Origin::Make, ..Self::CURRENT };
    const EVERYTHING: Self = Self { base: Origin::Make, drive: Origin::Make, initramfs: Origin::Make };

    fn origin(self, file: &str) -> Origin {
        match file {
            DRIVE => self.drive,
            INITRAMFS => self.initramfs,
            _ => self.base,
        }
    }
}

/// One build, under the image's lock.
struct Build {
    plan: Plan,
    init: Init,
    previous: Option<Image>,
}

/// What bootstrapping found out and no file shows.
struct Origins {
    recipe_sha256: String,
    kernel_release: String,
    packages: Vec<String>,
    modules: Vec<Module>,
}

impl Build {
    async fn run(
        self,
        builder: &ImageBuilder,
        store: Store,
        data_dir: &Path,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Image, ImageError> {
        let staged = store.stage()?;
        let staging = staged.path().to_owned();
        let scratch = staging.join("scratch");
        fs::create_dir(&scratch).map_err(ImageError::io("create", &scratch))?;
        for file in FILES {
            if let (Some(previous), Origin::Reuse) = (&self.previous, self.plan.origin(file)) {
                fs::hard_link(previous.directory.join(file), staging.join(file))
                    .map_err(ImageError::io("link", &staging.join(file)))?;
            }
        }
        if self.plan.drive == Origin::Make {
            progress(&Step::Drive);
            tools::require(&["mke2fs"])?;
            let image = staging.join(DRIVE);
            ext4::write_drive(&scratch, &image, builder.drive_size_bytes).await?;
        }
        let origins = match &self.previous {
            Some(previous) if self.plan.base == Origin::Reuse => Origins::of(previous)?,
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
            store.publish(staged, replaced.as_deref())
        })
        .await?;
        Image::open(&kept, &name)
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
        check_space(staging)?;
        progress(&Step::Bootstrapping { suite: recipe.suite.clone() });
        let rootfs = recipe.bootstrap(scratch, progress).await?;
        progress(&Step::Kernel);
        let kernel = Kernel::unpack(&rootfs.kernel_packages, scratch).await?;
        fs::copy(&kernel.vmlinuz, staging.join(KERNEL)).map_err(ImageError::io("copy", &kernel.vmlinuz))?;
        progress(&Step::Base);
        ext4::write_base(&rootfs.root, &staging.join(BASE)).await?;
        Ok(Self {
            recipe_sha256: recipe.digest(),
            kernel_release: kernel.release.clone(),
            packages: rootfs.packages,
            modules: kernel.modules()?,
        })
    }
}

fn check_space(staging: &Path) -> Result<(), ImageError> {
    let space = statvfs(staging).map_err(|errno| ImageError::io("measure", staging)(errno.into()))?;
    let available_bytes = space.blocks_available() * space.fragment_size();
    if available_bytes < SPACE_BYTES {
        return Err(ImageError::NoSpace { path: staging.to_owned(), needed_bytes: SPACE_BYTES, available_bytes });
    }
    Ok(())
}

fn setting(setting: &'static str, value: &str, rule: &'static str) -> ImageError {
    ImageError::Setting { setting, value: value.to_owned(), rule }
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::io("finish", path)(error.into())),
    }
}

const DRIVE_SIZE_BYTES: u64 = 4 << 30;
const DRIVE_SIZES_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=8 << 40;
/// The tree, its packages, the kernel's, and the base image, all at once, with room to spare.
const SPACE_BYTES: u64 = 1536 << 20;
