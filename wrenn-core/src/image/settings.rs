//! The settings of an image to build.

use std::path::PathBuf;

use crate::image::error::ImageError;
use crate::image::initramfs::Init;
use crate::image::kernel::Freshness;
use crate::image::rootfs::Recipe;

/// The settings of an image to build, made by [`Image::builder`](crate::image::Image::builder).
///
/// ```no_run
/// # async fn demo() -> Result<(), wrenn_core::image::ImageError> {
/// use wrenn_core::image::Image;
///
/// let builder = Image::builder("python").package("python3-numpy");
/// let image = builder.build(&wrenn_core::default_data_dir(), |step| println!("{step}")).await?;
/// println!("{} has the kernel {}", image.name(), image.kernel_release());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct ImageBuilder {
    pub(super) name: String,
    pub(super) agent: Option<PathBuf>,
    pub(super) recipe: Recipe,
    pub(super) drive_size_bytes: u64,
    pub(super) freshness: Freshness,
}

impl ImageBuilder {
    pub(super) fn new(name: String) -> Self {
        let recipe = Recipe { suite: "bookworm".to_owned(), extra_packages: Vec::new() };
        Self { name, agent: None, recipe, drive_size_bytes: DRIVE_SIZE_BYTES, freshness: Freshness::Kept }
    }

    /// The path of another agent's binary, which is static and for x86-64. Default: the agent that comes with this
    /// library. An image with another agent keeps it; one with the library's gets each newer one.
    pub fn agent(mut self, path: impl Into<PathBuf>) -> Self {
        self.agent = Some(path.into());
        self
    }

    /// The size of each sandbox's writable drive, in bytes: a multiple of 4096 from 16 MiB to 8 TiB. Default: 4 GiB.
    /// The drive is sparse, and costs what is written to it.
    pub fn drive_size_bytes(mut self, size_bytes: u64) -> Self {
        self.drive_size_bytes = size_bytes;
        self
    }

    /// The code name of the Debian release. Default: `bookworm`. Another release costs a new base.
    pub fn suite(mut self, suite: impl Into<String>) -> Self {
        self.recipe.suite = suite.into();
        self
    }

    /// Adds a Debian package to the base. Default: none besides wrenn's own. Each package makes the base larger, and a
    /// change of the packages costs a new base.
    pub fn package(mut self, package: impl Into<String>) -> Self {
        self.recipe.extra_packages.push(package.into());
        self
    }

    /// Has the build ask for newer packages and a newer kernel, where an image is there already. Default: an image with the
    /// same settings stays as it is, however old it is. Sandboxes that were created from an image go on with its base.
    pub fn refresh(mut self) -> Self {
        self.freshness = Freshness::Newest;
        self
    }

    /// The Debian release whose kernel the guests boot.
    pub(super) fn kernel_suite(&self) -> &str {
        &self.recipe.suite
    }

    /// The agent to pack. Blocks.
    pub(super) fn init(&self) -> Result<Init, ImageError> {
        self.agent.as_deref().map_or_else(Init::bundled, Init::read)
    }

    /// Checks the settings, since they become arguments of programs.
    pub(super) fn check(&self) -> Result<(), ImageError> {
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

/// The settings of an image with this name, and the defaults.
impl From<&str> for ImageBuilder {
    fn from(name: &str) -> Self {
        Self::new(name.to_owned())
    }
}

impl From<String> for ImageBuilder {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

pub(super) fn setting(setting: &'static str, value: &str, rule: &'static str) -> ImageError {
    ImageError::Setting { setting, value: value.to_owned(), rule }
}

const DRIVE_SIZE_BYTES: u64 = 4 << 30;
const DRIVE_SIZES_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=8 << 40;
