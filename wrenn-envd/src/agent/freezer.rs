//! The control group of everything that users run, so that all of it can be stopped at once.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// Stops and continues the guest's processes.
#[derive(Debug)]
pub(super) struct Freezer {
    group: Option<Group>,
    is_frozen: AtomicBool,
}

#[derive(Debug)]
struct Group {
    directory: PathBuf,
    /// `cgroup.procs`, which a process writes itself into.
    members: Arc<File>,
}

/// Why the processes were not stopped, or not continued.
#[derive(Debug, thiserror::Error)]
pub(super) enum FreezeError {
    #[error("there is no control group to freeze")]
    NoGroup,
    #[error("a process cannot be frozen")]
    TimedOut,
    #[error("the control group cannot be used: {0}")]
    Io(#[from] io::Error),
}

impl Freezer {
    /// One that can freeze nothing.
    pub(super) fn none() -> Self {
        Self { group: None, is_frozen: AtomicBool::new(false) }
    }

    /// Makes the group below `hierarchy`, a mounted cgroup2.
    pub(super) fn create(hierarchy: &Path) -> io::Result<Self> {
        let directory = hierarchy.join("user");
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let members = OpenOptions::new().write(true).open(directory.join("cgroup.procs"))?;
        // Limits are a kindness to the agent, which some kernels cannot do.
        let _ = fs::write(hierarchy.join("cgroup.subtree_control"), "+cpu +memory");
        let _ = fs::write(directory.join("cpu.weight"), "50");
        if let Some(bytes_max) = memory_max(&fs::read_to_string("/proc/meminfo").unwrap_or_default()) {
            let _ = fs::write(directory.join("memory.max"), bytes_max.to_string());
        }
        let group = Some(Group { directory, members: Arc::new(members) });
        Ok(Self { group, is_frozen: AtomicBool::new(false) })
    }

    /// Where a new process writes itself into the group.
    pub(super) fn members(&self) -> Option<Arc<File>> {
        self.group.as_ref().map(|group| group.members.clone())
    }

    /// Whether a new process would never run, and whoever waits for its exec neither.
    pub(super) fn is_frozen(&self) -> bool {
        self.is_frozen.load(Ordering::Acquire)
    }

    /// Stops every process of the group, and returns when the last one has stopped.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling may leave the group frozen.
    pub(super) async fn freeze(&self) -> Result<(), FreezeError> {
        let Group { directory, .. } = self.group.as_ref().ok_or(FreezeError::NoGroup)?;
        self.is_frozen.store(true, Ordering::Release);
        let deadline = Instant::now() + FREEZE_MAX;
        fs::write(directory.join("cgroup.freeze"), "1")
            .inspect_err(|_| self.is_frozen.store(false, Ordering::Release))?;
        while !is_all_frozen(&fs::read_to_string(directory.join("cgroup.events"))?) {
            if Instant::now() >= deadline {
                self.thaw()?;
                return Err(FreezeError::TimedOut);
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Lets the group run on. One that runs is left alone.
    pub(super) fn thaw(&self) -> Result<(), FreezeError> {
        let Some(Group { directory, .. }) = &self.group else { return Ok(()) };
        if self.is_frozen() {
            fs::write(directory.join("cgroup.freeze"), "0")?;
            self.is_frozen.store(false, Ordering::Release);
        }
        Ok(())
    }
}

/// `populated 1\nfrozen 1\n`
fn is_all_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

/// What processes may use, in bytes: all but an eighth, and at most 128 MiB less than there is.
fn memory_max(meminfo: &str) -> Option<u64> {
    let kibibytes: u64 =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    let total = kibibytes.checked_mul(1024)?;
    Some(total - (total / 8).min(128 << 20))
}

/// A process in the midst of a slow system call stops when that is done.
const FREEZE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_memory_for_the_agent() {
        assert_eq!(memory_max("MemTotal:  262144 kB\n"), Some((256 << 20) - (32 << 20)));
        assert_eq!(memory_max("MemTotal:  8388608 kB\n"), Some((8 << 30) - (128 << 20)));
        assert_eq!(memory_max(""), None);
    }

    #[tokio::test]
    async fn reads_the_kernels_word() {
        assert!(is_all_frozen("populated 1\nfrozen 1\n"));
        assert!(!is_all_frozen("populated 1\nfrozen 0\n"));
        assert!(matches!(Freezer::none().freeze().await, Err(FreezeError::NoGroup)));
        assert!(Freezer::none().thaw().is_ok());
    }
}
