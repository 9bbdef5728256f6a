//! The user that a VMM runs as.
//!
//! ```text
//!  /run/wrenn/users    one byte for each user; a lock on a byte is a reservation, of all programs that share /run
//! ```

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{Mode, OFlags, open, openat};

use crate::error::{Error, Result};

/// The user and group that a VMM runs as, which no other process has.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The last clone frees it.
    _reservation: Option<Arc<Reservation>>,
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
        let reserved = Users::of_program().and_then(|users| users.reserve(rand::random::<u32>));
        reserved.map(Some).map_err(|e| Error::failed("reserve a user for the VMM")(e.into()))
    }

    /// A user that is not reserved.
    #[cfg(test)]
    pub(crate) fn unreserved(uid: u32, gid: u32) -> Self {
        Self { uid, gid, _reservation: None }
    }
}

/// The users that this program has reserved, by one open file.
#[derive(Debug)]
struct Users {
    file: File,
    /// An open file's locks keep other open files out, and not itself.
    reserved: Mutex<HashSet<u32>>,
}

#[derive(Debug)]
struct Reservation {
    users: Arc<Users>,
    number: u32,
}

impl Users {
    /// What all VMMs of this program share, for as long as the file in the directory is the same one.
    fn of_program() -> io::Result<Arc<Self>> {
        static SHARED: Mutex<Option<Arc<Users>>> = Mutex::new(None);
        let opened = Self::open(Path::new(DIRECTORY))?;
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(users) = &*shared
            && users.number_of_file()? == opened.number_of_file()?
        {
            return Ok(Arc::clone(users));
        }
        Ok(Arc::clone(shared.insert(opened)))
    }

    fn open(directory: &Path) -> io::Result<Arc<Self>> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = File::from(open(directory, flags, Mode::empty())?);
        if opened.metadata()?.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other(format!("{} belongs to another user", directory.display())));
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&opened, "users", flags, Mode::RUSR | Mode::WUSR)?.into();
        Ok(Arc::new(Self { file, reserved: Mutex::default() }))
    }

    fn number_of_file(&self) -> io::Result<(u64, u64)> {
        let metadata = self.file.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    fn reserve(self: &Arc<Self>, random: impl Fn() -> u32) -> io::Result<Identity> {
        for _ in 0..ATTEMPTS_MAX {
            let number = random() % EPHEMERAL_UIDS;
            let mut reserved = self.reserved();
            if reserved.contains(&number) {
                continue;
            }
            match self.lock(number, libc::F_WRLCK) {
                Ok(()) => {
                    reserved.insert(number);
                    let id = EPHEMERAL_UID_MIN + number;
                    let reservation = Reservation { users: Arc::clone(self), number };
                    return Ok(Identity { uid: id, gid: id, _reservation: Some(Arc::new(reservation)) });
                }
                Err(error) if is_of_another(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("every user that was tried is taken"))
    }

    fn lock(&self, number: u32, kind: libc::c_int) -> io::Result<()> {
        let byte = libc::flock {
            l_type: short(kind)?,
            l_whence: short(libc::SEEK_SET)?,
            l_start: number.into(),
            l_len: 1,
            l_pid: 0,
        };
        fcntl(&self.file, FcntlArg::F_OFD_SETLK(&byte))?;
        Ok(())
    }

    fn reserved(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut reserved = self.users.reserved();
        // One that cannot be freed stays reserved until the program ends.
        match self.users.lock(self.number, libc::F_UNLCK) {
            Ok(()) => _ = reserved.remove(&self.number),
            Err(error) => tracing::warn!(%error, number = self.number, "a VMM's user was not freed"),
        }
    }
}

fn is_of_another(error: &io::Error) -> bool {
    [Errno::EAGAIN, Errno::EACCES].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
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

    use super::*;

    #[test]
    fn a_place_that_another_user_may_have_made_is_refused() {
        let (dir, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let link = dir.path().join("wrenn");
        std::os::unix::fs::symlink(theirs.path(), &link).unwrap();
        assert!(Users::open(&link).is_err(), "a link was followed");
        let inside = dir.path().join("own");
        std::fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink(theirs.path().join("users"), inside.join("users")).unwrap();
        assert!(Users::open(&inside).is_err() && !theirs.path().join("users").exists(), "a link was followed");
    }

    #[test]
    fn a_user_is_one_vmms_until_that_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (program, other) = (Users::open(dir.path()).unwrap(), Users::open(dir.path()).unwrap());
        let numbers = AtomicU32::new(0);
        // Each number three times: chance that meets the same user again and again.
        let random = || numbers.fetch_add(1, Ordering::Relaxed) / 3;
        let reserved = (0..20).map(|at| if at % 2 == 0 { &program } else { &other }.reserve(random).unwrap());
        let users: Vec<Identity> = reserved.collect();
        for (number, user) in (0_u32..).zip(&users) {
            assert_eq!((user.uid, user.gid), (EPHEMERAL_UID_MIN + number, user.uid));
        }
        let clone = users[0].clone();
        drop(users);
        for users in [&program, &other] {
            assert!(users.reserve(|| 0).is_err(), "a clone of it is still there");
            assert_eq!(users.reserve(|| 1).unwrap().uid, EPHEMERAL_UID_MIN + 1);
        }
        drop(clone);
        for users in [&other, &program] {
            assert_eq!(users.reserve(|| 0).unwrap().uid, EPHEMERAL_UID_MIN);
        }
    }
}
