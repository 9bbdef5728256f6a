//! The user that a VMM runs as.
//!
//! ```text
//!  /run/wrenn/users    one byte for each user; a lock on a byte is a reservation, of all programs that share /run
//! ```

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{Mode, OFlags, open, openat};

use crate::error::{Error, Result};

/// The user and group that a VMM runs as, which no other process has.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Holds the lock. The last clone frees it.
    _reservation: Option<Arc<OwnedFd>>,
}

impl Identity {
    /// Reserves a user for one VMM, so that it can neither trace nor signal another. `None` where the program has no
    /// right to change users.
    ///
    /// # Errors
    /// [`Error::Failed`] where `/run/wrenn` cannot be written, or where every user that was tried was reserved already.
    pub(crate) fn reserve() -> Result<Option<Self>> {
        if !nix::unistd::Uid::effective().is_root() {
            return Ok(None);
        }
        let reserved = reserve_in(Path::new(DIRECTORY), rand::random::<u32>);
        reserved.map(Some).map_err(|e| Error::failed("reserve a user for the VMM")(e.into()))
    }

    /// A user that is not reserved.
    #[cfg(test)]
    pub(crate) fn unreserved(uid: u32, gid: u32) -> Self {
        Self { uid, gid, _reservation: None }
    }
}

fn reserve_in(directory: &Path, random: impl Fn() -> u32) -> io::Result<Identity> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = File::from(open(directory, flags, Mode::empty())?);
    if opened.metadata()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("{} belongs to another user", directory.display())));
    }
    for _ in 0..ATTEMPTS_MAX {
        let number = random() % EPHEMERAL_UIDS;
        // Each reservation opens the file anew, since a lock belongs to an open file, and is released with it.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let users = openat(&opened, "users", flags, Mode::RUSR | Mode::WUSR)?;
        let byte = libc::flock {
            l_type: short(libc::F_WRLCK)?,
            l_whence: short(libc::SEEK_SET)?,
            l_start: number.into(),
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(&users, FcntlArg::F_OFD_SETLK(&byte)) {
            Ok(_) => {
                let id = EPHEMERAL_UID_MIN + number;
                return Ok(Identity { uid: id, gid: id, _reservation: Some(Arc::new(users)) });
            }
            Err(Errno::EAGAIN | Errno::EACCES) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::other("every user that was tried is taken"))
}

fn short(number: libc::c_int) -> io::Result<libc::c_short> {
    libc::c_short::try_from(number).map_err(io::Error::other)
}

/// The directory in which programs share their reservations. Only root may write it.
pub(super) const DIRECTORY: &str = "/run/wrenn";
/// Above the ids that Debian, systemd (to 1,879,048,191) and user namespaces hand out.
const EPHEMERAL_UID_MIN: u32 = 1_900_000_000;
const EPHEMERAL_UIDS: u32 = 1 << 24;
/// With a million reserved, all of these are taken once in 10^19 times.
const ATTEMPTS_MAX: u32 = 16;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_place_that_another_user_may_have_made_is_refused() {
        let (dir, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let link = dir.path().join("wrenn");
        std::os::unix::fs::symlink(theirs.path(), &link).unwrap();
        assert!(reserve_in(&link, || 0).is_err(), "a link was followed");
        let inside = dir.path().join("own");
        std::fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink(theirs.path().join("users"), inside.join("users")).unwrap();
        assert!(reserve_in(&inside, || 0).is_err() && !theirs.path().join("users").exists(), "a link was followed");
    }

    #[test]
    fn a_user_is_one_vmms_until_that_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = AtomicU32::new(0);
        // Each number three times: chance that meets the same user again and again.
        let random = || numbers.fetch_add(1, Ordering::Relaxed) / 3;
        let reserve = || reserve_in(dir.path(), random).unwrap();
        let users: Vec<Identity> = (0..20).map(|_| reserve()).collect();
        for (number, user) in (0_u32..).zip(&users) {
            assert_eq!((user.uid, user.gid), (EPHEMERAL_UID_MIN + number, user.uid));
        }
        let clone = users[0].clone();
        drop(users);
        assert!(reserve_in(dir.path(), || 0).is_err(), "a clone of it is still there");
        drop(clone);
        // A process that another test is just starting has the descriptor until it is another program.
        let began = Instant::now();
        let freed = loop {
            match reserve_in(dir.path(), || 0) {
                Err(_) if began.elapsed() < Duration::from_secs(30) => std::thread::sleep(Duration::from_millis(1)),
                reserved => break reserved.unwrap(),
            }
        };
        assert_eq!(freed.uid, EPHEMERAL_UID_MIN);
    }
}
