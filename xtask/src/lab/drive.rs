//! The lab's writable drive: programs, images and what is to be run; the rest of it is room.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use wrenn_core::image::Image;

use super::libraries;
use super::test_binaries::TestBinary;
use super::tools::{Tools, Vmm};
use crate::shell;

/// A drive without a name, which is gone when its last user has ended.
#[derive(Debug)]
pub(super) struct Drive(File);

impl Drive {
    /// Writes an ext4 with everything that the lab takes from the host; `script` is what it will run.
    pub(super) fn write(image: &Image, tools: &Tools, binaries: &[TestBinary], script: &str) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix(".lab-").tempdir_in(shell::target())?;
        let tree = directory.path();
        let images = tree.join("lab/data/images");
        let programs = tree.join("lab/bin");
        // Apart from the programs: a test may be called like one.
        let tests = tree.join(TESTS.trim_start_matches('/'));
        for directory in [&images, &programs, &tests, &tree.join("upper"), &tree.join("work")] {
            fs::create_dir_all(directory)?;
        }
        let base = image.base();
        let base = base.parent().context("the image has no directory")?;
        copy_tree(base, &images.join(image.name()))?;
        if tools.vmm == Vmm::Qemu {
            libraries::carry_qemu(tools.program(), tree)?;
        }
        let programs_of_firecracker = tools.programs().iter().filter(|_| tools.vmm == Vmm::Firecracker);
        let tools = programs_of_firecracker.map(|program| (programs.join(program.name), &program.path));
        let binaries = binaries.iter().map(|binary| (tests.join(&binary.name), &binary.path));
        for (to, from) in tools.chain(binaries) {
            fs::copy(from, to).with_context(|| format!("{} cannot be copied", from.display()))?;
        }
        fs::write(tree.join("lab/start"), START)?;
        fs::write(tree.join("lab/run"), script)?;
        let drive = tempfile::tempfile_in(shell::target())?;
        drive.set_len(DRIVE_BYTES)?;
        format(tree, &path_of(&drive))?;
        Ok(Self(drive))
    }

    pub(super) fn path(&self) -> PathBuf {
        path_of(&self.0)
    }
}

/// A path to a file without a name, for programs that this process starts.
pub(super) fn path_of(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// A tree of links where the file system allows it, else of copies; either keeps the holes of sparse files.
fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copy = |how: &[&str]| {
        let mut command = Command::new("cp");
        command.arg("--archive").args(how).arg("--no-target-directory").arg(from).arg(to);
        command
    };
    if copy(&["--link"]).stderr(std::process::Stdio::null()).status()?.success() {
        return Ok(());
    }
    shell::run(&mut copy(&["--sparse=always", "--force"]))
}

fn format(tree: &Path, drive: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-i", "65536"]);
    // Nobody reads the drive after the machine has ended, so it needs no journal.
    command.args(["-O", "^has_journal,^metadata_csum", "-E", "root_owner=0:0,lazy_itable_init=1", "-d"]);
    shell::run(command.arg(tree).arg(drive))
}

/// Where the test binaries are in the lab.
pub(super) const TESTS: &str = "/lab/tests";
const START: &str = include_str!("start.sh");
/// Sparse: it takes what is in it.
const DRIVE_BYTES: u64 = 16 << 30;
