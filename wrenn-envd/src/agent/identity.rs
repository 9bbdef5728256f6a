//! Work on files with a user's own rights, in an agent that could do anything.

use std::{io, marker::PhantomData};

use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};
use tokio::task::spawn_blocking;

use super::users::User;

/// Runs `work` on a thread that may wait, as `user`: the kernel checks each path as it would for the user's own process,
/// and what is made is the user's.
///
/// An agent that is not root, as in a test, stays who it is.
///
/// # Cancel-Safety
///
/// A future that is dropped leaves `work` running to its end.
pub(super) async fn as_user<T, E>(user: User, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    let worked = spawn_blocking(move || {
        let _identity = Identity::assume(&user)?;
        work()
    });
    worked.await.unwrap_or_else(|error| Err(io::Error::other(error).into()))
}

/// This thread's rights on files are a user's until this is dropped.
///
/// The three calls change the calling thread alone, as they do not in most wrappers of the C library's.
#[derive(Debug)]
pub(super) struct Identity {
    /// `None` where nothing was changed.
    former: Option<(Vec<rustix::thread::Gid>, Gid, Uid)>,
    /// It is the thread's, so it may not leave it.
    _thread: PhantomData<*const ()>,
}

impl Identity {
    pub(super) fn assume(user: &User) -> io::Result<Self> {
        let unchanged = Self { former: None, _thread: PhantomData };
        if !geteuid().is_root() || user.uid == 0 {
            return Ok(unchanged);
        }
        let groups = rustix::process::getgroups()?;
        let wanted: Vec<_> = user.groups.iter().map(|gid| rustix::thread::Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&wanted)?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        let assumed = Self { former: Some((groups, setfsgid(gid), setfsuid(uid))), ..unchanged };
        // They report no failure: a second call tells what the first one did.
        if setfsuid(uid) == uid && setfsgid(gid) == gid {
            Ok(assumed)
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let Some((groups, gid, uid)) = self.former.take() else { return };
        setfsuid(uid);
        setfsgid(gid);
        if setfsuid(uid) != uid || setfsgid(gid) != gid || rustix::thread::set_thread_groups(&groups).is_err() {
            // The thread would serve the next call as the wrong user. Root can always change back, so this does not happen.
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use super::*;

    #[tokio::test]
    async fn a_thread_is_the_user_for_the_work_and_root_afterwards() {
        if !geteuid().is_root() {
            println!("skipped: a_thread_is_the_user_for_the_work_and_root_afterwards: no root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let user = User { name: "u".into(), uid: 12345, gid: 12346, groups: vec![12346, 12347], home: "/".into() };
        let path = directory.path().to_owned();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let (inside, found) = (path.clone(), secret.clone());
        let read = as_user(user, move || -> io::Result<_> {
            fs::write(inside.join("new"), "y")?;
            let groups = rustix::process::getgroups()?.len();
            Ok((fs::read(found).map_err(|error| error.kind()), groups))
        });
        assert_eq!(read.await.unwrap(), (Err(io::ErrorKind::PermissionDenied), 2));
        let new = fs::metadata(path.join("new")).unwrap();
        assert_eq!((new.uid(), new.gid()), (12345, 12346));
        assert_eq!(tokio::task::spawn_blocking(move || fs::read(secret)).await.unwrap().unwrap(), b"x");
    }
}
