//! A disk for tests that keeps whoever opens one file first waiting until the test lets it go.

use std::{
    fs::File,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Condvar, Mutex},
    time::Duration,
};

use crate::disk::{Disk, local::LocalDisk};

#[derive(Debug, Default)]
pub(crate) struct HeldUpDisk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What is held up.
    path: Option<PathBuf>,
    somebody_waits: bool,
    /// How often something was opened since.
    opened: usize,
}

impl HeldUpDisk {
    /// From now on, the first to open `path` waits.
    pub(crate) fn hold_up(&self, path: PathBuf) {
        *self.state.lock().expect("no test panics with the lock") =
            State { path: Some(path), somebody_waits: false, opened: 0 };
    }

    pub(crate) fn let_go(&self) {
        self.state.lock().expect("no test panics with the lock").path = None;
        self.changed.notify_all();
    }

    /// Waits until somebody waits.
    pub(crate) fn wait_for_somebody(&self) {
        let state = self.state.lock().expect("no test panics with the lock");
        let waited = self.changed.wait_timeout_while(state, PATIENCE, |state| !state.somebody_waits);
        assert!(!waited.expect("no test panics with the lock").1.timed_out(), "nobody opens it");
    }

    /// Waits until so much was opened since the file is held up, and says whether that came.
    pub(crate) fn opens(&self, count: usize) -> bool {
        let state = self.state.lock().expect("no test panics with the lock");
        let waited = self.changed.wait_timeout_while(state, PATIENCE / 2, |state| state.opened < count);
        !waited.expect("no test panics with the lock").1.timed_out()
    }

    fn pass(&self, path: &Path) {
        let mut state = self.state.lock().expect("no test panics with the lock");
        state.opened += 1;
        self.changed.notify_all();
        if state.path.as_deref() == Some(path) && !state.somebody_waits {
            state.somebody_waits = true;
            self.changed.notify_all();
            let passed = self.changed.wait_timeout_while(state, PATIENCE, |state| state.path.as_deref() == Some(path));
            drop(passed.expect("no test panics with the lock"));
        }
    }
}

impl Disk for HeldUpDisk {
    fn open(&self, path: &Path) -> io::Result<File> {
        self.pass(path);
        LocalDisk.open(path)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        LocalDisk.len(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        LocalDisk.list(dir)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        LocalDisk.create_dir(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<File> {
        LocalDisk.create_file(path)
    }

    fn open_to_write(&self, path: &Path) -> io::Result<File> {
        LocalDisk.open_to_write(path)
    }

    fn write(&self, file: &File, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        LocalDisk.write(file, pieces)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        LocalDisk.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove_dir(path)
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
