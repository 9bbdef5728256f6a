//! The guest's users, from its own `passwd` and `group` files: a static binary has no name service to ask.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::agent::disk::opened::short_text;

/// A user of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Every group that the user is in, the primary one first.
    pub(super) groups: Vec<u32>,
    pub(super) home: PathBuf,
}

/// Why a user could not be looked up.
#[derive(Debug, thiserror::Error)]
pub(super) enum UserError {
    #[error("no user {name:?}")]
    Unknown { name: String },
    #[error("no group {name:?}")]
    UnknownGroup { name: String },
    #[error("the users cannot be read")]
    Unreadable(#[source] io::Error),
}

/// The users of this machine's `/etc`. The last one that was asked for is known until a file changes: a sandbox has one
/// user for most of what it does.
#[derive(Debug, Default)]
pub(super) struct Users {
    last: Mutex<Option<Known>>,
}

#[derive(Debug)]
struct Known {
    name: String,
    user: User,
    files: [Stamp; 2],
}

impl Users {
    /// The user that `name`, or a number in its place, stands for, perhaps in a group in place of its own: `user:group`. A
    /// number needs no user of that number, as in an OCI image's configuration.
    pub(super) fn find(&self, name: &str) -> Result<User, UserError> {
        self.find_in(Path::new("/etc"), name, SystemTime::now())
    }

    fn find_in(&self, etc: &Path, name: &str, now: SystemTime) -> Result<User, UserError> {
        let files = ["passwd", "group"].map(|file| Stamp::of(&etc.join(file)));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = last.as_ref().filter(|known| known.name == name && known.files == files) {
            return Ok(known.user.clone());
        }
        let user = User::find_in(etc, name)?;
        let is_settled = files.iter().all(|file| file.is_settled(now));
        *last = is_settled.then(|| Known { name: name.to_owned(), user: user.clone(), files });
        Ok(user)
    }
}

/// What changes when a file does; `None` where there is none.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, u64, i64, i64)>);

impl Stamp {
    fn of(path: &Path) -> Self {
        let stamp = |file: fs::Metadata| (file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec());
        Self(fs::metadata(path).ok().map(stamp))
    }

    /// Whether another change would be seen: a file's time is no finer than the kernel's clock ticks.
    fn is_settled(&self, now: SystemTime) -> bool {
        let Some((.., seconds, _)) = self.0 else { return true };
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(seconds).is_ok_and(|seconds| Duration::from_secs(seconds) + SETTLED < now)
    }
}

/// Tens of thousands of users. The agent reads each file on the one thread that serves all callers.
const BYTES_MAX: u64 = 1 << 20;

const SETTLED: Duration = Duration::from_secs(2);

impl User {
    fn find_in(etc: &Path, name: &str) -> Result<Self, UserError> {
        let passwd = match short_text(&etc.join("passwd"), BYTES_MAX) {
            // An image with no users file still has its superuser.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.map_err(UserError::Unreadable)?,
        };
        let told = |name: &str| name.chars().take(64).collect();
        let (name, group_name) = name.split_once(':').map_or((name, None), |(name, group)| (name, Some(group)));
        let mut user = parse_passwd(&passwd, name)
            .or_else(|| matches!(name, "root" | "0").then(Self::superuser))
            .or_else(|| name.parse().ok().map(Self::without_a_name))
            .ok_or_else(|| UserError::Unknown { name: told(name) })?;
        // A user whose groups cannot be read is in the primary one alone.
        let group = short_text(&etc.join("group"), BYTES_MAX).unwrap_or_default();
        if let Some(name) = group_name.filter(|name| !name.is_empty()) {
            user.gid = gid_of(&group, name).ok_or_else(|| UserError::UnknownGroup { name: told(name) })?;
            user.groups = vec![user.gid];
            return Ok(user);
        }
        user.groups.extend(groups_of(&group, &user.name).filter(|gid| *gid != user.gid).collect::<Vec<_>>());
        Ok(user)
    }

    fn superuser() -> Self {
        Self { name: "root".to_owned(), uid: 0, gid: 0, groups: vec![0], home: PathBuf::from("/root") }
    }

    /// A user of whom the image has the number alone.
    fn without_a_name(uid: u32) -> Self {
        Self { name: uid.to_string(), uid, gid: 0, groups: vec![0], home: PathBuf::from("/") }
    }

    /// `path` as the user means it: `~` is the home, and what is not absolute lies under `base`.
    pub(super) fn resolve(&self, path: &Path, base: &Path) -> PathBuf {
        match path.strip_prefix("~") {
            Ok(below) if below.as_os_str().is_empty() => self.home.clone(),
            Ok(below) => self.home.join(below),
            Err(_) => base.join(path),
        }
    }
}

/// `name:password:uid:gid:comment:home:shell`, by name first, then by number.
fn parse_passwd(passwd: &str, name: &str) -> Option<User> {
    let entries = || {
        passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
            Some(User { name: name.to_owned(), uid, gid, groups: vec![gid], home: PathBuf::from(home) })
        })
    };
    let by_name = entries().find(|user| user.name == name);
    by_name.or_else(|| name.parse().ok().and_then(|uid: u32| entries().find(|user| user.uid == uid)))
}

/// The number of a group, by its name first, then by its number, which needs no group.
fn gid_of(group: &str, name: &str) -> Option<u32> {
    let by_name = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    by_name.or_else(|| name.parse().ok())
}

/// `name:password:gid:member,member`
fn groups_of(group: &str, name: &str) -> impl Iterator<Item = u32> {
    group.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let gid = fields.nth(2)?.parse().ok()?;
        fields.next()?.split(',').any(|member| member.trim() == name).then_some(gid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::disk::opened::{put_pipe, soon};

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\n\nuser:x:1000:1000::/home/user:/bin/bash\nbare:x:7:8::\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:other,user\nuser:x:1000:user\nbroken:x:nine:user\nvideo:x:44:userx\n";

    fn etc() -> tempfile::TempDir {
        let etc = tempfile::tempdir().unwrap();
        fs::write(etc.path().join("passwd"), PASSWD).unwrap();
        fs::write(etc.path().join("group"), GROUP).unwrap();
        etc
    }

    #[test]
    fn finds_by_name_and_by_number_with_groups() {
        let etc = etc();
        let user = User::find_in(etc.path(), "user").unwrap();
        assert_eq!((user.uid, user.gid, user.groups.as_slice()), (1000, 1000, &[1000, 27][..]));
        assert_eq!(user.home, Path::new("/home/user"));
        assert_eq!(User::find_in(etc.path(), "1000").unwrap(), user);
        assert_eq!(User::find_in(etc.path(), "bare").unwrap().home, Path::new("/"));
    }

    #[test]
    fn an_image_may_name_a_group_and_bare_numbers() {
        let etc = etc();
        let found = |name: &str| {
            let user = User::find_in(etc.path(), name).unwrap();
            (user.uid, user.gid, user.groups)
        };
        assert_eq!(found("user:video"), (1000, 44, vec![44]));
        assert_eq!(found("1000:12"), (1000, 12, vec![12]));
        assert_eq!(found("user:"), (1000, 1000, vec![1000, 27]));
        assert_eq!(found("4711"), (4711, 0, vec![0]));
        assert_eq!(User::find_in(etc.path(), "4711:9").unwrap().home, Path::new("/"));
        let refused = |name: &str| User::find_in(etc.path(), name).unwrap_err().to_string();
        assert_eq!(refused("user:nobodys"), "no group \"nobodys\"");
        assert_eq!(refused("nobody:video"), "no user \"nobody\"");
        assert_eq!(refused("-1"), "no user \"-1\"");
    }

    #[test]
    fn a_change_of_the_files_is_seen() {
        let (etc, users) = (etc(), Users::default());
        let now = SystemTime::now();
        let groups_at = |now| users.find_in(etc.path(), "user", now).unwrap().groups;
        assert_eq!(groups_at(now), [1000, 27]);
        assert!(users.last.lock().unwrap().is_none(), "what has just changed may change again at the same time");
        fs::write(etc.path().join("group"), "video:x:44:user\n").unwrap();
        assert_eq!(groups_at(now), [1000, 44]);
        let later = now + SETTLED + Duration::from_secs(2);
        assert_eq!([groups_at(later), groups_at(later)], [[1000, 44], [1000, 44]]);
        assert!(users.last.lock().unwrap().is_some());
        assert_eq!(users.find_in(etc.path(), "bare", later).unwrap().uid, 7);
        fs::write(etc.path().join("group"), "video:x:45:user\n").unwrap();
        assert_eq!(groups_at(later), [1000, 45]);
    }

    #[test]
    fn files_that_never_end_or_never_begin_are_not_read() {
        let replaced = |file: &str, put: fn(&Path)| {
            let etc = etc();
            fs::remove_file(etc.path().join(file)).unwrap();
            put(&etc.path().join(file));
            soon(move || User::find_in(etc.path(), "user"))
        };
        let endless: fn(&Path) = |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap();
        let huge: fn(&Path) = |path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
        for put in [put_pipe, endless, huge] {
            let error = replaced("passwd", put).unwrap_err();
            assert!(matches!(error, UserError::Unreadable(_)), "{error:?}");
            assert_eq!(replaced("group", put).unwrap().groups, [1000], "the primary group needs no file");
        }
    }

    #[test]
    fn an_unknown_user_is_named() {
        assert_eq!(User::find_in(etc().path(), "ghost").unwrap_err().to_string(), r#"no user "ghost""#);
    }

    #[test]
    fn root_needs_no_users_file() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(User::find_in(empty.path(), "root").unwrap().uid, 0);
        assert!(User::find_in(empty.path(), "user").is_err());
    }

    #[test]
    fn paths_resolve_as_a_shell_would() {
        let user = User::find_in(etc().path(), "user").unwrap();
        let resolved = |path: &str| user.resolve(Path::new(path), &user.home).to_string_lossy().into_owned();
        assert_eq!(resolved("a/b"), "/home/user/a/b");
        assert_eq!(resolved("~"), "/home/user");
        assert_eq!(resolved("~/x"), "/home/user/x");
        assert_eq!(resolved("/etc"), "/etc");
        assert_eq!(resolved("~other"), "/home/user/~other");
    }
}
