//! What an image shall be.

use std::path::PathBuf;

use crate::image::error::ImageError;
use crate::image::rootfs::Recipe;

/// What an image shall be. Made by [`Image::builder`](crate::image::Image::builder).
#[derive(Debug, Clone)]
#[must_use]
pub struct ImageBuilder {
    pub(super) name: String,
    pub(super) agent: Option<PathBuf>,
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

    /// The settings become arguments of programs, so they are checked before any runs.
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

pub(super) fn setting(setting: &'static str, value: &str, rule: &'static str) -> ImageError {
    ImageError::Setting { setting, value: value.to_owned(), rule }
}

const DRIVE_SIZE_BYTES: u64 = 4 << 30;
const DRIVE_SIZES_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=8 << 40;
