//! File systems of a test's own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A memory disk of `size`, such as "1m", on a directory of its own.
pub(crate) struct MemoryDisk(tempfile::TempDir);

impl MemoryDisk {
    pub(crate) fn mount(size: &str) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let options = format!("size={size}");
        mount(Some("none"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(directory))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// An ext4 in a file, which can be frozen.
pub(crate) struct LoopDisk(tempfile::TempDir);

impl LoopDisk {
    pub(crate) fn mount() -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (image, place) = (directory.path().join("image"), directory.path().join("mount"));
        fs::create_dir(&place)?;
        fs::File::create(&image)?.set_len(16 << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &place]))?;
        Ok(Self(directory))
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("mount")
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(self.path()));
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}
