use std::path::{Path, PathBuf};

use super::build::{Build, Origin, Plan, blocking};
use super::initramfs::Init;
use super::manifest::Manifest;
use super::rootfs::Recipe;
use super::store::Store;
use super::{Image, ImageError, Name, Step};

/// What an image shall be. Made by [`Image::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ImageBuilder {
    pub(super) name: String,
    agent: Option<PathBuf>,
    pub(super) recipe: Recipe,
    pub(super) drive_size_bytes: u64,
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
    /// Programs that were started are killed and what was staged is removed; an existing image is untouched. Once
    /// [`Step::Publishing`] was reported, the build finishes in the background.
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

fn setting(setting: &'static str, value: &str, rule: &'static str) -> ImageError {
    ImageError::Setting { setting, value: value.to_owned(), rule }
}

const DRIVE_SIZE_BYTES: u64 = 4 << 30;
const DRIVE_SIZES_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=8 << 40;
