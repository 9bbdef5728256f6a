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
    let modules = only_entry(&tree.join("lib/modules"))?;
    let release = modules.file_name().unwrap_or_default();
    let busybox = tree.join("bin/busybox");
    // The applet stands in for a `depmod` that the host may lack.
    shell::run(Command::new(&busybox).arg("depmod").arg("-b").arg(tree).arg(release))?;
    let dep = modules.join("modules.dep");
    let dep = fs::read_to_string(&dep).with_context(|| format!("{} cannot be read", dep.display()))?;
    let order = load_order(&dep, modules::WANTED)?;
    let initramfs = BufWriter::new(File::create(made.join("initramfs"))?);
    initramfs::pack(initramfs, &busybox, &modules, &order)?;
    let vmlinuz = format!("boot/vmlinuz-{}", release.to_string_lossy());
    fs::copy(tree.join(&vmlinuz), made.join("vmlinuz")).with_context(|| format!("the package has no {vmlinuz}"))?;
    Ok(())
}

fn only_entry(directory: &Path) -> anyhow::Result<PathBuf> {
    let mut entries = fs::read_dir(directory).with_context(|| format!("there is no {}", directory.display()))?;
    let first = entries.next().with_context(|| format!("{} is empty", directory.display()))?;
    anyhow::ensure!(entries.next().is_none(), "{} has more than one entry", directory.display());
    Ok(first?.path())
}

const SUITE: &str = "bookworm";
const PACKAGES: &str = "busybox-static,linux-image-cloud-amd64";
const RECIPE: &str = "recipe";
