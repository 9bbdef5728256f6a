//! A file system whose server never answers.
#![expect(clippy::print_stdout, reason = "a skipped test is named where the test runner shows it")]

use std::{
    fs::{self, File},
    os::fd::AsRawFd as _,
    path::PathBuf,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Whoever looks into it waits, until it is dropped.
pub(crate) struct HungMount {
    directory: tempfile::TempDir,
    _server: File,
}

impl HungMount {
    /// `None`, and a line that says so, where this machine has no FUSE or this user may not mount.
    pub(crate) fn make(test: &str) -> Option<Self> {
        let made = Self::try_make();
        if let Err(error) = &made {
            println!("skipped: {test}: {error}");
        }
        made.ok()
    }

    fn try_make() -> std::io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let server = File::options().read(true).write(true).open("/dev/fuse")?;
        let place = directory.path().join("hung");
        fs::create_dir(&place)?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", server.as_raw_fd());
        mount(Some("hung"), &place, Some("fuse"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self { directory, _server: server })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("hung")
    }
}

impl Drop for HungMount {
    fn drop(&mut self) {
        // Those who wait are let go with it.
        let _ = umount2(&self.path(), MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
    }
}
