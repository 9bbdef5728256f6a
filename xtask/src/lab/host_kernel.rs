//! The kernel that the lab's machine runs: Debian's, with the modules of a host, and a busybox to start with.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use clap::ValueEnum;

use super::initramfs;
use super::modules::{self, load_order};
use crate::shell;

/// Which kernel: Debian's, of a release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12's. It has no asynchronous write protection, so that synchronous tracking is the best that it has.
    #[value(name = "6.1")]
    Debian12,
    /// Debian 13's, which has all that lazy paging wants.
    #[default]
    #[value(name = "6.12")]
    Debian13,
}

impl Kernel {
    fn suite(self) -> &'static str {
        match self {
            Self::Debian12 => "bookworm",
            Self::Debian13 => "trixie",
        }
    }
}

/// A kernel and its initramfs, ready to boot.
#[derive(Debug)]
pub(super) struct HostKernel {
    pub(super) vmlinuz: PathBuf,
    pub(super) initramfs: PathBuf,
}

impl HostKernel {
    /// Makes both below `directory`, unless they are there from an earlier run. That takes network, and some 20 s.
    pub(super) fn prepare(directory: &Path, which: Kernel) -> anyhow::Result<Self> {
        let (recipe, directory) = (recipe(which), &directory.join(which.suite()));
        let kernel = Self { vmlinuz: directory.join("vmlinuz"), initramfs: directory.join("initramfs") };
        if fs::read_to_string(directory.join(RECIPE)).is_ok_and(|made| made == recipe) {
            return Ok(kernel);
        }
        println!("lab: fetching Debian's kernel, which is done once");
        make(directory, which, &recipe).context("the lab's kernel could not be made")?;
        Ok(kernel)
    }
}

/// What the files are made of, kept beside them: another recipe makes them anew.
fn recipe(which: Kernel) -> String {
    [which.suite(), PACKAGES, &modules::WANTED.join(" "), initramfs::INIT].join("\n")
}

fn make(directory: &Path, which: Kernel, recipe: &str) -> anyhow::Result<()> {
    let parent = directory.parent().context("it has no place")?;
    fs::create_dir_all(parent)?;
    let scratch = tempfile::Builder::new().prefix(".lab-kernel-").tempdir_in(parent)?;
    let tree = scratch.path().join("tree");
    // Packages are unpacked and not installed: nothing of them runs.
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap.args(["--quiet", "--mode=root", "--variant=extract", "--architectures=amd64", "--components=main"]);
    shell::run(bootstrap.arg(format!("--include={PACKAGES}")).arg(which.suite()).arg(&tree))?;
    let made = scratch.path().join("made");
    fs::create_dir(&made)?;
    pack(&tree, &made)?;
    fs::write(made.join(RECIPE), recipe)?;
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::rename(&made, directory)?;
    Ok(())
}

fn pack(tree: &Path, made: &Path) -> anyhow::Result<()> {
    // Debian 13 has everything but the kernel itself below /usr, and Debian 12 this beside it.
    let usr = [tree.join("usr"), tree.to_owned()].into_iter().find(|root| root.join("lib/modules").is_dir());
    let usr = usr.context("the package has no modules")?;
    let modules = only_entry(&usr.join("lib/modules"))?;
    let release = modules.file_name().unwrap_or_default();
    let busybox = usr.join("bin/busybox");
    // The applet stands in for a `depmod` that the host may lack.
    shell::run(Command::new(&busybox).arg("depmod").arg("-b").arg(&usr).arg(release))?;
    let dep = modules.join("modules.dep");
    let dep = fs::read_to_string(&dep).with_context(|| format!("{} cannot be read", dep.display()))?;
    let order = load_order(&dep, modules::WANTED)?;
    let order = order.into_iter().map(|file| unpacked(&busybox, &modules, file)).collect::<anyhow::Result<Vec<_>>>()?;
    let initramfs = BufWriter::new(File::create(made.join("initramfs"))?);
    initramfs::pack(initramfs, &busybox, &modules, &order)?;
    let vmlinuz = format!("boot/vmlinuz-{}", release.to_string_lossy());
    fs::copy(tree.join(&vmlinuz), made.join("vmlinuz")).with_context(|| format!("the package has no {vmlinuz}"))?;
    Ok(())
}

/// Unpacks a module that is compressed, since the lab's `insmod` takes only those that are not. Returns the file's name.
fn unpacked<'a>(busybox: &Path, modules: &Path, file: &'a str) -> anyhow::Result<&'a str> {
    let Some(name) = file.strip_suffix(".xz") else { return Ok(file) };
    shell::run(Command::new(busybox).arg("unxz").arg(modules.join(file)))?;
    Ok(name)
}

fn only_entry(directory: &Path) -> anyhow::Result<PathBuf> {
    let mut entries = fs::read_dir(directory).with_context(|| format!("there is no {}", directory.display()))?;
    let first = entries.next().with_context(|| format!("{} is empty", directory.display()))?;
    anyhow::ensure!(entries.next().is_none(), "{} has more than one entry", directory.display());
    Ok(first?.path())
}

const PACKAGES: &str = "busybox-static,linux-image-cloud-amd64";
const RECIPE: &str = "recipe";
