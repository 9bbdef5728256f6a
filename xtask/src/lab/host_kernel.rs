//! The kernel that the lab's machine runs: Debian's, with the modules of a host, and a busybox to start with.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::initramfs;
use super::modules::{self, load_order};
use crate::shell;

/// A kernel and its initramfs, ready to boot.
#[derive(Debug)]
pub(super) struct HostKernel {
    pub(super) vmlinuz: PathBuf,
    pub(super) initramfs: PathBuf,
}

impl HostKernel {
    /// Makes both in `directory`, unless they are there from an earlier run. That takes network, and some 20 s.
    pub(super) fn prepare(directory: &Path) -> anyhow::Result<Self> {
        let recipe = recipe();
        let kernel = Self { vmlinuz: directory.join("vmlinuz"), initramfs: directory.join("initramfs") };
        if fs::read_to_string(directory.join(RECIPE)).is_ok_and(|made| made == recipe) {
            return Ok(kernel);
        }
        println!("lab: fetching Debian's kernel, which is done once");
        make(directory, &recipe).context("the lab's kernel could not be made")?;
        Ok(kernel)
    }
}

/// What the files are made of, kept beside them: another recipe makes them anew.
fn recipe() -> String {
    [SUITE, PACKAGES, &modules::WANTED.join(" "), initramfs::INIT].join("\n")
}

fn make(directory: &Path, recipe: &str) -> anyhow::Result<()> {
    let parent = directory.parent().context("it has no place")?;
    fs::create_dir_all(parent)?;
    let scratch = tempfile::Builder::new().prefix(".lab-kernel-").tempdir_in(parent)?;
    let tree = scratch.path().join("tree");
    // Packages are unpacked and not installed: nothing of them runs.
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap.args(["--quiet", "--mode=root", "--variant=extract", "--architectures=amd64", "--components=main"]);
    shell::run(bootstrap.arg(format!("--include={PACKAGES}")).arg(SUITE).arg(&tree))?;
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
    // Debian 13 has everything but the kernel itself below /usr.
    let usr = tree.join("usr");
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

/// Debian 13, whose kernel 6.12 has everything that lazy paging wants; that of Debian 12 lacks asynchronous write protection.
const SUITE: &str = "trixie";
const PACKAGES: &str = "busybox-static,linux-image-cloud-amd64";
const RECIPE: &str = "recipe";
