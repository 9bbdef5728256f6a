//! The groups of single processes, which are used again.
//!
//! ```text
//!            +------------- spare <---- nobody is in it ----+
//!            v                                              |
//!  take --> Leaf --- its process has ended: retire ---> retired --- too many spares ---> removed
//! ```
//!
//! Making a group and removing it costs a short process about a tenth of its time, half of it after its end.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{group::make, kind::Kind};

/// Those that no running process has.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    spare: Vec<(Kind, Directory)>,
    /// Their process has ended, and others are still in them.
    retired: Vec<Leaf>,
}

/// The group of one process and of all that it starts, for as long as somebody is in it.
#[derive(Clone, Debug)]
pub(in crate::agent) struct Leaf {
    kind: Kind,
    /// `None` once it may be another process's.
    directory: Arc<Mutex<Option<Directory>>>,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// The directory itself, which the new process is born into.
    opened: Arc<OwnedFd>,
    /// `cgroup.events`.
    events: File,
}

impl Leaves {
    /// A group below `parent` that nobody is in.
    pub(super) fn take(&self, kind: Kind, parent: &Path) -> io::Result<Leaf> {
        let mut state = lock(&self.state);
        let spare = state.spare.iter().position(|(of, _)| *of == kind).map(|index| state.spare.swap_remove(index).1);
        let directory = match spare {
            Some(directory) => directory,
            None => {
                state.last += 1;
                Directory::make(parent.join(format!("p{}", state.last)))?
            }
        };
        Ok(Leaf { kind, directory: Arc::new(Mutex::new(Some(directory))) })
    }

    /// Takes back the group of a process that has ended, now or when the last of its background processes has ended too.
    pub(super) fn retire(&self, leaf: &Leaf) {
        lock(&self.state).retired.push(leaf.clone());
        self.sweep();
    }

    /// Takes back the retired groups that nobody is in any more.
    pub(super) fn sweep(&self) {
        let State { spare, retired, .. } = &mut *lock(&self.state);
        retired.retain(|leaf| {
            let mut held = lock(&leaf.directory);
            let Some(directory) = held.take_if(|directory| directory.is_deserted()) else { return held.is_some() };
            if spare.len() < SPARES_MAX && directory.is_bare() {
                spare.push((leaf.kind, directory));
            } else if !directory.remove() {
                *held = Some(directory);
            }
            held.is_some()
        });
    }
}

impl Leaf {
    /// The directory, to start a process in.
    ///
    /// # Errors
    ///
    /// Where the process that it was for has ended already.
    pub(in crate::agent) fn opened(&self) -> io::Result<Arc<OwnedFd>> {
        Ok(lock(&self.directory).as_ref().ok_or(io::ErrorKind::NotFound)?.opened.clone())
    }

    /// Kills everybody in the group, however far they have gone from the process that came first.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot. A group that is given back has nobody to kill.
    pub(in crate::agent) fn kill(&self) -> io::Result<()> {
        match &*lock(&self.directory) {
            Some(directory) => fs::write(directory.path.join("cgroup.kill"), "1"),
            None => Ok(()),
        }
    }
}

impl Directory {
    fn make(path: PathBuf) -> io::Result<Self> {
        make(&path)?;
        let opened = Arc::new(File::open(&path)?.into());
        let events = File::open(path.join("cgroup.events"))?;
        Ok(Self { path, opened, events })
    }

    /// Whether nobody is in it, or below it, and it would not hold up who comes next.
    fn is_deserted(&self) -> bool {
        let mut events = [0; 64];
        // A group that somebody else has removed cannot be read.
        self.events.read_at(&mut events, 0).map_or(true, |length| !events[..length].contains(&b'1'))
    }

    /// Whether it is as it was made, and has no groups below it: no process could be born into it then.
    fn is_bare(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| found.nlink() == 2)
    }

    fn remove(&self) -> bool {
        fs::remove_dir(&self.path).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many are kept for processes to come: more at once are rarely short ones.
const SPARES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is no group: what the kernel would tell of it is written by hand.
    struct FakeParent(tempfile::TempDir);

    impl FakeParent {
        fn new(names: u64) -> Self {
            let this = Self(tempfile::tempdir().unwrap());
            for number in 1..=names {
                fs::create_dir(this.path().join(format!("p{number}"))).unwrap();
                this.say(number, "populated 1\nfrozen 0\n");
            }
            this
        }

        fn path(&self) -> &Path {
            self.0.path()
        }

        fn say(&self, number: u64, events: &str) {
            fs::write(self.path().join(format!("p{number}/cgroup.events")), events).unwrap();
        }

        fn was_killed(&self, number: u64) -> bool {
            self.path().join(format!("p{number}/cgroup.kill")).exists()
        }
    }

    fn name(leaf: &Leaf) -> String {
        let held = lock(&leaf.directory);
        held.as_ref().map_or_else(String::new, |held| held.path.file_name().unwrap().to_string_lossy().into_owned())
    }

    #[test]
    fn a_group_is_used_again_once_nobody_is_in_it() {
        let (parent, leaves) = (FakeParent::new(3), Leaves::default());
        let take = |kind| leaves.take(kind, parent.path()).unwrap();
        let first = take(Kind::User);
        leaves.retire(&first);
        let second = take(Kind::User);
        assert_eq!((name(&first), name(&second)), ("p1".into(), "p2".into()), "somebody is still in the first");
        parent.say(1, "populated 0\nfrozen 1\n");
        leaves.sweep();
        assert_eq!(name(&first), "p1", "a frozen one is nothing to begin in");
        parent.say(1, "populated 0\nfrozen 0\n");
        leaves.sweep();
        assert_eq!(name(&take(Kind::Pty)), "p3", "of another kind");
        assert_eq!(name(&take(Kind::User)), "p1");
    }

    #[test]
    fn a_process_that_has_ended_cannot_kill_who_has_its_group_now() {
        let (parent, leaves) = (FakeParent::new(1), Leaves::default());
        let first = leaves.take(Kind::User, parent.path()).unwrap();
        leaves.retire(&first);
        parent.say(1, "populated 0\nfrozen 0\n");
        leaves.sweep();
        let second = leaves.take(Kind::User, parent.path()).unwrap();
        first.kill().unwrap();
        assert!(!parent.was_killed(1) && first.opened().is_err());
        second.kill().unwrap();
        assert!(parent.was_killed(1) && second.opened().is_ok());
    }

    #[test]
    fn a_group_with_groups_below_it_is_not_used_again() {
        let (parent, leaves) = (FakeParent::new(2), Leaves::default());
        let first = leaves.take(Kind::User, parent.path()).unwrap();
        fs::create_dir(parent.path().join("p1/below")).unwrap();
        parent.say(1, "populated 0\nfrozen 0\n");
        leaves.retire(&first);
        assert_eq!(name(&leaves.take(Kind::User, parent.path()).unwrap()), "p2");
        assert_eq!(name(&first), "p1", "it is tried again: it could not be removed");
    }
}
