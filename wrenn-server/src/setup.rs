//! `wrenn-server setup`: a bare machine made ready, with a line for each thing that is done.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use wrenn_core::image::{Image, ImageBuilder, requirements};

use crate::packages::{self, Change};

/// What to set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The image to have at the end.
    pub image: ImageBuilder,
    /// Packages to install besides wrenn's own.
    pub more_packages: Vec<&'static str>,
    /// Whether packages may be removed that stand in the way.
    pub may_remove: bool,
}

impl Setup {
    /// Installs the packages that are missing, and builds the image where it is missing or out of date. What is there is
    /// not done again. `line` gets a line for a person before each part, with what it will change and how much it loads.
    ///
    /// # Errors
    /// Where packages are missing and this user is not root, or installing them would remove others: the text has the
    /// command to type. Where the image cannot be built.
    ///
    /// # Cancel-Safety
    /// An image that was begun is removed; the next call begins it anew. Packages that are being installed block this
    /// thread until apt has ended.
    pub async fn run(self, data_dir: &Path, mut line: impl FnMut(&str) + Send) -> anyhow::Result<Image> {
        let started = Instant::now();
        self.install(&mut line)?;
        line(&format!("the image goes to {}", data_dir.display()));
        let (mut interrupted, mut terminated) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
        let build = self.image.build(data_dir, |step| line(&format!("  {step}")));
        // Dropped, the build ends what it has started, which the end of this program would not.
        let image = tokio::select! {
            image = build => image.context("the image could not be built")?,
            _ = interrupted.recv() => bail!("interrupted; nothing half-done is left, so run it again"),
            _ = terminated.recv() => bail!("terminated; nothing half-done is left, so run it again"),
        };
        let (name, seconds) = (image.name(), started.elapsed().as_secs_f64());
        line(&format!("`{name}` is ready after {seconds:.1} s (kernel {})", image.kernel_release()));
        Ok(image)
    }

    /// Blocks.
    fn install(&self, line: &mut impl FnMut(&str)) -> anyhow::Result<()> {
        let missing = requirements().into_iter().filter(|needed| needed.found.is_none());
        let mut missing: Vec<&str> = missing.map(|needed| needed.package).chain(self.more_packages.clone()).collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            line("every package is here");
            return Ok(());
        }
        let command = packages::command(&missing);
        if !nix::unistd::Uid::effective().is_root() {
            bail!(
                "packages are missing; install them as root, and run this again:\n    sudo apt-get update && sudo {command}"
            );
        }
        line(&format!("missing: {}; fetching apt's lists", missing.join(", ")));
        packages::update()?;
        let change = Change::of(&missing)?;
        line(&change.to_string());
        if !change.removed.is_empty() && !self.may_remove {
            bail!(
                "nothing was installed, since that would remove {}: say `--allow-removals` if that may be, or find \
                 versions that fit together, for instance by the release that the others come from:\n    {command} \
                 -t RELEASE",
                change.removed.join(", ")
            );
        }
        packages::install(&missing)
    }
}

fn watch(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("signals cannot be watched")
}
