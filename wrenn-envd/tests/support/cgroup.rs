//! A control group of one's own on this machine.
#![expect(clippy::print_stdout, reason = "a skipped test is named where the test runner shows it")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

/// Removed, with all that is in it, when it is dropped.
pub(crate) struct Cgroup {
    pub(crate) directory: PathBuf,
}

impl Cgroup {
    /// `None`, and a line that says so, where this machine has no cgroup2 that this user may write to.
    pub(crate) fn make(test: &str) -> Option<Self> {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/mounts").expect("Linux has mounts");
        let made = mounts
            .lines()
            .find_map(|line| {
                let mut words = line.split(' ').skip(1);
                let (place, kind) = (words.next()?, words.next()?);
                (kind == "cgroup2").then(|| PathBuf::from(place))
            })
            .ok_or_else(|| io::Error::other("no cgroup2 is mounted"))
            .and_then(|mount| {
                let number = LAST.fetch_add(1, Ordering::Relaxed);
                let directory = mount.join(format!("wrenn-test-{}-{number}", std::process::id()));
                fs::create_dir(&directory).map(|()| directory)
            });
        match made {
            Ok(directory) => Some(Self { directory }),
            Err(error) => {
                println!("skipped: {test}: {error}");
                None
            }
        }
    }

    pub(crate) fn option(&self) -> [&str; 2] {
        ["--cgroup", self.directory.to_str().expect("UTF-8")]
    }

    /// Those that somebody is in.
    pub(crate) fn occupied_leaves(&self) -> Vec<PathBuf> {
        let mut leaves = self.leaves();
        leaves.retain(|leaf| fs::read_to_string(leaf.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty()));
        leaves
    }

    /// Every group of one process, wherever it is.
    pub(crate) fn leaves(&self) -> Vec<PathBuf> {
        ["sandbox/user", "sandbox/ptys"].iter().flat_map(|group| children(&self.directory.join(group))).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.directory.join("cgroup.kill"), "1");
        for _ in 0..200 {
            remove(&self.directory);
            if !self.directory.exists() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove(directory: &Path) {
    children(directory).iter().for_each(|child| remove(child));
    let _ = fs::remove_dir(directory);
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}
