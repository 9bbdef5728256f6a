//! Work on files with a user's own rights, in an agent that could do anything.

use std::{
    io,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use tokio::{sync::oneshot, task::spawn_blocking, time::timeout};

use super::users::User;

/// Runs `work` on a thread that may wait, as `user`: the kernel checks each path as it would for the user's own process,
/// and what is made is the user's.
///
/// An agent that is not root, as in a test, stays who it is.
///
/// # Errors
///
/// [`io::ErrorKind::TimedOut`] where `work` has not begun within [`BEGIN_MAX`], because every thread waits for a file system
/// that does not answer; it is not done then.
///
/// # Cancel-Safety
///
/// A future that is dropped leaves `work` running to its end.
pub(super) async fn as_user<T, E>(user: User, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    let (begun, has_begun) = oneshot::channel();
    let claimed = Arc::new(AtomicBool::new(false));
    let given_up = claimed.clone();
    let worked = spawn_blocking(move || {
        if claimed.swap(true, Ordering::AcqRel) {
            // Nobody waits for it any more.
            return Err(no_thread().into());
        }
        let _ = begun.send(());
        let _identity = Identity::assume(&user)?;
        work()
    });
    if timeout(BEGIN_MAX, has_begun).await.is_err() && !given_up.swap(true, Ordering::AcqRel) {
        return Err(no_thread().into());
    }
    worked.await.unwrap_or_else(|error| Err(io::Error::other(error).into()))
}

fn no_thread() -> io::Error {
    let message = format!("for {BEGIN_MAX:?} every thread for files has waited for a file system that does not answer");
    io::Error::new(io::ErrorKind::TimedOut, message)
}

/// How long a call on files waits for a thread, which is longer than a drive is frozen.
const BEGIN_MAX: Duration = Duration::from_secs(30);

/// This thread's rights on files are a user's until this is dropped.
///
/// It has none of root's capabilities either: with them it could look into root's processes, and beyond limits of the disk.
///
/// All calls change the calling thread alone, as they do not in most wrappers of the C library's.
#[derive(Debug)]
pub(super) struct Identity {
    /// `None` where nothing was changed.
    former: Option<Former>,
    /// It is the thread's, so it may not leave it.
    _thread: PhantomData<*const ()>,
}

#[derive(Debug)]
struct Former {
    groups: Vec<rustix::thread::Gid>,
    gid: Gid,
    uid: Uid,
    capabilities: CapabilitySets,
}

impl Identity {
    pub(super) fn assume(user: &User) -> io::Result<Self> {
        let unchanged = Self { former: None, _thread: PhantomData };
        if !geteuid().is_root() || user.uid == 0 {
            return Ok(unchanged);
        }
        let (groups, capabilities) = (rustix::process::getgroups()?, capabilities(None)?);
        let wanted: Vec<_> = user.groups.iter().map(|gid| rustix::thread::Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&wanted)?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        let former = Former { groups, gid: setfsgid(gid), uid: setfsuid(uid), capabilities };
        let assumed = Self { former: Some(former), ..unchanged };
        // They report no failure: a second call tells what the first one did.
        if setfsuid(uid) != uid || setfsgid(gid) != gid {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        // They stay permitted, so that they can be taken back.
        set_capabilities(None, CapabilitySets { effective: CapabilitySet::empty(), ..capabilities })?;
        Ok(assumed)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let Some(Former { groups, gid, uid, capabilities }) = self.former.take() else { return };
        // First: the others need them. They are as they were only after those, which take some away themselves.
        let may_go_back = set_capabilities(None, capabilities).is_ok();
        setfsuid(uid);
        setfsgid(gid);
        let is_back =
            setfsuid(uid) == uid && setfsgid(gid) == gid && rustix::thread::set_thread_groups(&groups).is_ok();
        if !may_go_back || !is_back || set_capabilities(None, capabilities).is_err() {
            // The thread would serve the next call as the wrong user. Root can always change back, so this does not happen.
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use super::*;

    #[test]
    fn a_call_that_no_thread_begins_is_given_up_and_not_done_later() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
        let root = || User { name: "root".into(), uid: 0, gid: 0, groups: vec![0], home: "/".into() };
        runtime.block_on(async {
            let (go, waits) = std::sync::mpsc::channel::<()>();
            let stuck = tokio::spawn(as_user(root(), move || Ok::<_, io::Error>(waits.recv().is_ok())));
            tokio::time::sleep(Duration::from_millis(50)).await;
            tokio::time::pause();
            let refused = as_user(root(), || Err::<(), _>(io::Error::other("it was done")));
            let time_goes_by = tokio::time::advance(BEGIN_MAX + Duration::from_secs(1));
            let (refused, ()) = tokio::join!(refused, time_goes_by);
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::TimedOut);
            tokio::time::resume();
            go.send(()).unwrap();
            assert!(stuck.await.unwrap().unwrap());
            assert_eq!(as_user(root(), || Ok::<_, io::Error>(7)).await.unwrap(), 7, "the thread serves others again");
        });
    }

    /// The kernel lets nobody but its user, and whoever may trace it, see what a process has open.
    #[tokio::test]
    async fn a_thread_that_is_the_user_cannot_look_into_roots_processes() {
        if !geteuid().is_root() {
            println!("skipped: a_thread_that_is_the_user_cannot_look_into_roots_processes: no root");
            return;
        }
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let proc = format!("/proc/{}", sleeper.id());
        let user = User { name: "u".into(), uid: 12345, gid: 12346, groups: vec![12346], home: "/".into() };
        let look = move || -> io::Result<_> {
            let kinds =
                [fs::read_link(format!("{proc}/cwd")).map(drop), fs::read_dir(format!("{proc}/root/")).map(drop)];
            let maps = fs::read(format!("{proc}/maps")).map(drop);
            Ok([kinds[0].as_ref(), kinds[1].as_ref(), maps.as_ref()].map(|seen| seen.map_err(io::Error::kind).copied()))
        };
        let seen = as_user(user, look.clone()).await.unwrap();
        let root = User { name: "root".into(), uid: 0, gid: 0, groups: vec![0], home: "/".into() };
        let seen_by_root = as_user(root, look).await.unwrap();
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!(seen, [Err(io::ErrorKind::PermissionDenied); 3]);
        assert_eq!(seen_by_root, [Ok(()); 3]);
    }

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
