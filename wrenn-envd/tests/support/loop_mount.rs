//! A drive of its own on this machine.
#![expect(clippy::print_stdout, reason = "a skipped test is named where the test runner shows it")]

use std::{fs, path::PathBuf, process::Command};

/// An ext4 in a file.
pub(crate) struct LoopMount {
    directory: tempfile::TempDir,
}

impl LoopMount {
    /// `None`, and a line that says so, where this machine has no loop devices or this user may not mount.
    pub(crate) fn make(test: &str) -> Option<Self> {
        let made = Self::try_make();
        if let Err(error) = &made {
            println!("skipped: {test}: {error}");
        }
        made.ok()
    }

    fn try_make() -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, mount) = (directory.path().join("image"), directory.path().join("mount"));
        fs::create_dir(&mount).map_err(|error| error.to_string())?;
        fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &mount]))?;
        Ok(Self { directory })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    /// Lets whoever waits for a frozen drive go on at the end of a test that has failed.
    pub(crate) fn thaw_on_drop(&self) -> impl Drop + use<> {
        ThawOnDrop(self.path())
    }
}

struct ThawOnDrop(PathBuf);

impl Drop for ThawOnDrop {
    fn drop(&mut self) {
        let _ = run(Command::new("fsfreeze").arg("-u").arg(&self.0));
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(self.path()));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}
