//! Watching a directory.
//!
//! ```text
//!  kernel's queue -> Watch::run -> Tracker::take -> channel -> stream, or watcher that is asked
//! ```
//!
//! Every queue is bounded. When nobody takes events out of the channel the kernel's queue fills up; once that overflows,
//! what was lost is said ([`WatchError::Lost`]), never passed over.

mod sys;
mod tracker;
mod watchers;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use connectrpc::ConnectError;
use nix::{
    errno::Errno,
    sys::{inotify::InotifyEvent, statfs::statfs},
};
use tokio::{sync::mpsc, time::sleep};

pub(super) use self::watchers::Watchers;
use self::{
    sys::{Incoming, Instance},
    tracker::{State, Tracker},
};
use super::error::FileError;
use crate::{
    agent::{identity::as_user, users::User},
    proto::filesystem::FilesystemEvent,
};

/// What is to be watched, and how.
#[derive(Clone, Debug)]
pub(super) struct WatchOptions {
    pub(super) path: PathBuf,
    pub(super) recursive: bool,
    pub(super) include_entry: bool,
    pub(super) allow_network_mounts: bool,
}

/// Why a watch did not tell of everything.
#[derive(Debug, thiserror::Error)]
pub(super) enum WatchError {
    #[error("events were lost, since they came faster than they were read; list the directory again")]
    Lost,
    #[error("the watch has ended: {0}")]
    Ended(#[source] FileError),
}

impl From<WatchError> for ConnectError {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Lost => Self::data_loss(error.to_string()),
            WatchError::Ended(error) => error.into(),
        }
    }
}

/// Events, until the directory is gone: then the channel is closed.
pub(super) type Events = mpsc::Receiver<Result<FilesystemEvent, WatchError>>;

/// Watches a directory as `user` until the receiver is dropped. What happens after this returns is told.
pub(super) async fn watch(user: User, options: WatchOptions) -> Result<Events, FileError> {
    let allow_network = options.allow_network_mounts;
    let opened = as_user(user.clone(), move || {
        check(&options.path, allow_network)?;
        let instance = Instance::new().map_err(|errno| match errno {
            Errno::EMFILE => FileError::TooMany(
                "there are too many watches: remove some, or raise fs.inotify.max_user_instances".to_owned(),
            ),
            errno => FileError::at(&options.path)(errno.into()),
        })?;
        Ok::<_, FileError>((instance.clone(), Tracker::open(instance, options)?))
    });
    let (instance, tracker) = opened.await?;
    let (sender, receiver) = mpsc::channel(EVENTS_HELD);
    tokio::spawn(Watch { incoming: Incoming::register(instance)?, sender, user }.run(tracker));
    Ok(receiver)
}

/// Refuses what is no directory, or is on a network file system.
fn check(path: &Path, allow_network_mounts: bool) -> Result<(), FileError> {
    let found = std::fs::metadata(path).map_err(FileError::at(path))?;
    if !found.is_dir() {
        return Err(FileError::Invalid(format!("{} is no directory", path.display())));
    }
    let kind = statfs(path).map_err(|errno| FileError::at(path)(errno.into()))?.filesystem_type();
    // The type's width is the platform's.
    #[expect(clippy::cast_sign_loss, reason = "a magic number is 32 bits, whatever it is kept in")]
    let magic = kind.0 as u64 & 0xffff_ffff;
    if !allow_network_mounts && is_network(magic) {
        let message = format!(
            "{} is on a network file system, which tells of few changes or none; set allow_network_mounts to watch it",
            path.display()
        );
        return Err(FileError::Invalid(message));
    }
    Ok(())
}

/// Whether a file system is one where others write, too, of whom the kernel does not hear.
fn is_network(magic: u64) -> bool {
    NETWORK_FILE_SYSTEMS.contains(&magic)
}

/// The task behind a watch.
struct Watch {
    incoming: Incoming,
    sender: mpsc::Sender<Result<FilesystemEvent, WatchError>>,
    user: User,
}

impl Watch {
    async fn run(self, mut tracker: Tracker) {
        loop {
            let batch = tokio::select! {
                batch = self.read(tracker.has_loose_ends()) => batch,
                () = self.sender.closed() => return,
            };
            let taken = as_user(self.user.clone(), move || {
                let mut events = Vec::new();
                let state = tracker.take(batch?, &mut events)?;
                Ok::<_, FileError>((tracker, events, state))
            });
            let (after, events, state) = match taken.await {
                Ok(taken) => taken,
                Err(error) => return drop(self.sender.send(Err(WatchError::Ended(error))).await),
            };
            tracker = after;
            let lost = (state == State::Lost).then_some(Err(WatchError::Lost));
            for event in events.into_iter().map(Ok).chain(lost) {
                if self.sender.send(event).await.is_err() {
                    return;
                }
            }
            if state == State::Gone {
                return;
            }
        }
    }

    /// What the kernel has, or nothing when there is nothing for a moment and the tracker waits to hear that.
    async fn read(&self, has_loose_ends: bool) -> io::Result<Vec<InotifyEvent>> {
        if !has_loose_ends {
            return self.incoming.read().await;
        }
        tokio::select! {
            events = self.incoming.read() => events,
            () = sleep(LOOSE_END_WAIT) => Ok(Vec::new()),
        }
    }
}

/// How many events wait for a client, besides those in the kernel's queue.
const EVENTS_HELD: usize = 4096;

/// A name that was left is taken up again at once, or was moved out of sight.
const LOOSE_END_WAIT: Duration = Duration::from_millis(20);

/// NFS, SMB, CIFS, SMB2, FUSE, 9P, AFS, Ceph and Lustre: `linux/magic.h` and the file systems' own sources.
const NETWORK_FILE_SYSTEMS: [u64; 9] =
    [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x0102_1997, 0x5346_414f, 0x00c3_6400, 0x0bd0_0bd0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_to_is_a_network_file_system() {
        use nix::libc;
        for magic in [libc::NFS_SUPER_MAGIC, libc::SMB_SUPER_MAGIC, libc::FUSE_SUPER_MAGIC, libc::AFS_SUPER_MAGIC] {
            assert!(is_network(u64::try_from(magic).unwrap()), "{magic:#x}");
        }
        for magic in [
            libc::EXT4_SUPER_MAGIC,
            libc::OVERLAYFS_SUPER_MAGIC,
            libc::TMPFS_MAGIC,
            libc::XFS_SUPER_MAGIC,
            libc::PROC_SUPER_MAGIC,
        ] {
            assert!(!is_network(u64::try_from(magic).unwrap()), "{magic:#x}");
        }
    }
}
