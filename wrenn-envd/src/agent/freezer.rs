//! Stops everything that users run at once, so that none of it runs in a copy before the copy is somebody of its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{OwnedRwLockReadGuard, RwLock, watch},
    time::{Instant, sleep, timeout},
};

use super::console::complain;

/// Stops and continues the guest's processes.
#[derive(Debug)]
pub(super) struct Freezer {
    group: Option<PathBuf>,
    standing: watch::Sender<Standing>,
    /// Read by whoever starts a process, and written by a freeze.
    starts: Arc<RwLock<()>>,
}

/// A process that is being started: a freeze waits for it, as long as this is there.
pub(super) type Beginning = OwnedRwLockReadGuard<()>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Standing {
    is_frozen: bool,
    /// Counts restores: who is in another life is a copy of whoever asked.
    life: u64,
}

/// As whom the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thaw {
    AsItself,
    /// After a restore, perhaps as a copy.
    Restored,
}

/// Why the processes were not stopped, or not continued.
#[derive(Debug, thiserror::Error)]
pub(super) enum FreezeError {
    #[error("there is no control group to freeze")]
    NoGroup,
    #[error("there is no drive of the guest's own to freeze")]
    NoDrive,
    #[error("the drive does not answer within {0:?}")]
    TimedOut(Duration),
    #[error("the kernel refuses: {0}")]
    Io(#[from] io::Error),
}

/// The guest was restored while somebody waited for its thaw: what that one wanted is another's to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest was restored meanwhile")]
pub(super) struct Restored;

impl Freezer {
    /// Of the processes in `group`, a directory of a cgroup2; with none nothing can be frozen.
    pub(super) fn new(group: Option<PathBuf>) -> Self {
        Self { group, standing: watch::Sender::default(), starts: Arc::default() }
    }

    /// Whether a new process would never run, and whoever waits for its exec neither.
    pub(super) fn is_frozen(&self) -> bool {
        self.standing.borrow().is_frozen
    }

    /// Waits until the guest begins to freeze.
    pub(super) async fn frozen(&self) {
        // It ends with the freezer alone, which is here.
        let _ = self.standing.subscribe().wait_for(|standing| standing.is_frozen).await;
    }

    /// Waits until the guest runs, and keeps it so for as long as it takes to start a process: one that is frozen before it
    /// executes its program holds up whoever starts it.
    ///
    /// # Errors
    ///
    /// Where the guest is restored before that: each copy of it has a copy of whoever waits here.
    pub(super) async fn begin(&self) -> Result<Beginning, Restored> {
        let mut standing = self.standing.subscribe();
        let life = standing.borrow_and_update().life;
        let is_over = |standing: &Standing| !standing.is_frozen || standing.life != life;
        loop {
            match standing.wait_for(is_over).await {
                Ok(standing) if standing.life == life => {}
                // It ends with the freezer alone, which is here.
                _ => return Err(Restored),
            }
            let beginning = self.starts.clone().read_owned().await;
            if !self.is_frozen() {
                return Ok(beginning);
            }
        }
    }

    /// Stops every process of the group, and returns when the last one has stopped; or after [`FREEZE_MAX`], when those that
    /// have not are in the midst of a system call, and stop when that is done: from the kernel's first word on none of them
    /// runs any further instruction of its program.
    ///
    /// # Errors
    ///
    /// The group runs on.
    ///
    /// # Cancel-Safety
    ///
    /// The group runs on.
    pub(super) async fn freeze(&self) -> Result<(), FreezeError> {
        let directory = self.group.as_ref().ok_or(FreezeError::NoGroup)?;
        self.set_frozen(true);
        let mut undo = ThawOnDrop(Some(self));
        // One that is held up by something else is not waited for.
        let _ = timeout(STARTS_MAX, self.starts.write()).await;
        fs::write(directory.join("cgroup.freeze"), "1")?;
        let deadline = Instant::now() + FREEZE_MAX;
        while !is_all_frozen(&events(directory)?) {
            if Instant::now() >= deadline {
                complain("freeze: a process is in a long system call, and stops when that is done");
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        undo.0 = None;
        Ok(())
    }

    /// Lets the group run on. One that runs is left alone.
    ///
    /// # Errors
    ///
    /// The group stays frozen.
    pub(super) fn thaw(&self, thaw: Thaw) -> Result<(), FreezeError> {
        if let Some(directory) = self.group.as_ref().filter(|_| self.is_frozen()) {
            fs::write(directory.join("cgroup.freeze"), "0")?;
        }
        self.standing.send_modify(|standing| {
            standing.is_frozen = false;
            standing.life += u64::from(thaw == Thaw::Restored);
        });
        Ok(())
    }

    fn set_frozen(&self, is_frozen: bool) {
        self.standing.send_modify(|standing| standing.is_frozen = is_frozen);
    }
}

/// A freeze that is not done. Dropping it lets the group run on.
struct ThawOnDrop<'a>(Option<&'a Freezer>);

impl Drop for ThawOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.map(|freezer| freezer.thaw(Thaw::AsItself)) {
            complain(&format!("let the guest run on after a freeze that failed: {error}"));
        }
    }
}

fn events(directory: &Path) -> io::Result<String> {
    fs::read_to_string(directory.join("cgroup.events"))
}

/// `populated 1\nfrozen 1\n`
fn is_all_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

/// A process in the midst of a slow system call stops when that is done, and need not be waited for: it is stopped for its
/// program already. With thousands of them the last one takes as long as the processor takes to come to it.
const FREEZE_MAX: Duration = Duration::from_secs(5);

/// How long a freeze waits for processes that are being started, which is far longer than that takes.
const STARTS_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is no group: what the kernel would tell is written by hand.
    fn group(events: Option<&str>) -> (tempfile::TempDir, Freezer) {
        let directory = tempfile::tempdir().unwrap();
        if let Some(events) = events {
            fs::write(directory.path().join("cgroup.events"), events).unwrap();
        }
        let freezer = Freezer::new(Some(directory.path().to_owned()));
        (directory, freezer)
    }

    fn asked(directory: &tempfile::TempDir) -> String {
        fs::read_to_string(directory.path().join("cgroup.freeze")).unwrap()
    }

    #[tokio::test]
    async fn reads_the_kernels_word() {
        assert!(is_all_frozen("populated 1\nfrozen 1\n"));
        assert!(!is_all_frozen("populated 1\nfrozen 0\n"));
        assert!(matches!(Freezer::new(None).freeze().await, Err(FreezeError::NoGroup)));
        assert!(Freezer::new(None).thaw(Thaw::AsItself).is_ok());
    }

    #[tokio::test]
    async fn a_freeze_whose_end_cannot_be_seen_is_taken_back() {
        let (directory, freezer) = group(None);
        assert!(matches!(freezer.freeze().await, Err(FreezeError::Io(_))));
        assert_eq!((asked(&directory).as_str(), freezer.is_frozen()), ("0", false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_freeze_that_is_given_up_is_taken_back() {
        let (directory, freezer) = group(Some("populated 1\nfrozen 0\n"));
        assert!(timeout(Duration::from_millis(100), freezer.freeze()).await.is_err());
        assert_eq!((asked(&directory).as_str(), freezer.is_frozen()), ("0", false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_in_a_long_system_call_is_as_good_as_frozen() {
        let (directory, freezer) = group(Some("populated 1\nfrozen 0\n"));
        freezer.freeze().await.unwrap();
        assert_eq!((asked(&directory).as_str(), freezer.is_frozen()), ("1", true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_freeze_waits_for_a_start_but_not_for_one_that_is_held_up() {
        let (_directory, freezer) = group(Some("frozen 1\n"));
        for (start, waited) in [(Duration::from_millis(30), Duration::from_millis(30)), (Duration::MAX / 2, STARTS_MAX)]
        {
            let beginning = freezer.begin().await.unwrap();
            let began = Instant::now();
            let starting = async {
                let _ = timeout(start.min(Duration::from_secs(60)), std::future::pending::<()>()).await;
                drop(beginning);
            };
            let frozen = async {
                freezer.freeze().await.unwrap();
                began.elapsed()
            };
            let (took, ()) = futures::join!(frozen, starting);
            assert!(took >= waited && took < waited + Duration::from_millis(5), "{took:?}");
            freezer.thaw(Thaw::AsItself).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_thaw_goes_on_in_no_copy() {
        let (_directory, freezer) = group(Some("frozen 1\n"));
        assert!(freezer.begin().await.is_ok());
        for (thaw, outcome) in [(Thaw::AsItself, Ok(())), (Thaw::Restored, Err(Restored))] {
            freezer.freeze().await.unwrap();
            let waiting =
                async { timeout(Duration::from_secs(60), freezer.begin()).await.map(|begun| begun.map(drop)) };
            let thawing = async {
                sleep(Duration::from_secs(1)).await;
                freezer.thaw(thaw).unwrap();
                // Frozen anew before anybody has looked.
                freezer.set_frozen(thaw == Thaw::Restored);
            };
            assert_eq!(futures::join!(waiting, thawing).0, Ok(outcome));
        }
    }
}
