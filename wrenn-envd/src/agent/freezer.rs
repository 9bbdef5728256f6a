//! Stops everything that users run at once, so that none of it runs in a copy before the copy is somebody of its own.

use std::{fs, io, path::PathBuf, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// Stops and continues the guest's processes.
#[derive(Debug)]
pub(super) struct Freezer {
    group: Option<PathBuf>,
    is_frozen: watch::Sender<bool>,
}

/// Why the processes were not stopped, or not continued.
#[derive(Debug, thiserror::Error)]
pub(super) enum FreezeError {
    #[error("there is no control group to freeze")]
    NoGroup,
    #[error("there is no drive of the guest's own to freeze")]
    NoDrive,
    #[error("a process cannot be frozen")]
    TimedOut,
    #[error("the kernel refuses: {0}")]
    Io(#[from] io::Error),
}

impl Freezer {
    /// Of the processes in `group`, a directory of a cgroup2; with none nothing can be frozen.
    pub(super) fn new(group: Option<PathBuf>) -> Self {
        Self { group, is_frozen: watch::Sender::new(false) }
    }

    /// Whether a new process would never run, and whoever waits for its exec neither.
    pub(super) fn is_frozen(&self) -> bool {
        *self.is_frozen.borrow()
    }

    /// Waits until the guest begins to freeze.
    pub(super) async fn frozen(&self) {
        // It ends with the freezer alone, which is here.
        let _ = self.is_frozen.subscribe().wait_for(|is_frozen| *is_frozen).await;
    }

    /// Stops every process of the group, and returns when the last one has stopped.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling may leave the group frozen.
    pub(super) async fn freeze(&self) -> Result<(), FreezeError> {
        let directory = self.group.as_ref().ok_or(FreezeError::NoGroup)?;
        self.is_frozen.send_replace(true);
        let deadline = Instant::now() + FREEZE_MAX;
        fs::write(directory.join("cgroup.freeze"), "1").inspect_err(|_| _ = self.is_frozen.send_replace(false))?;
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
        let Some(directory) = &self.group else { return Ok(()) };
        if self.is_frozen() {
            fs::write(directory.join("cgroup.freeze"), "0")?;
            self.is_frozen.send_replace(false);
        }
        Ok(())
    }
}

/// `populated 1\nfrozen 1\n`
fn is_all_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

/// A process in the midst of a slow system call stops when that is done.
const FREEZE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_the_kernels_word() {
        assert!(is_all_frozen("populated 1\nfrozen 1\n"));
        assert!(!is_all_frozen("populated 1\nfrozen 0\n"));
        assert!(matches!(Freezer::new(None).freeze().await, Err(FreezeError::NoGroup)));
        assert!(Freezer::new(None).thaw().is_ok());
    }
}
