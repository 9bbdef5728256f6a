//! A copy of a tree, with its owners, permissions, times, metadata and holes.
//!
//! What is told of a file is told of the descriptor that its contents are read from, after they have been read: who writes to
//! a program takes its special rights away first.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::unistd::{Uid, setfsuid};
use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid as RawUid, chownat, fchmod,
        fchown, fstat, futimens, mkdirat, openat, readlinkat, statat, symlinkat,
    },
    io::Errno,
};

use crate::agent::disk::{copy::copy_contents, descent::Descent, metadata, opened, spot::Spot};

/// Copies what lies at `from` to `to`, where nothing is yet.
pub(super) fn copy(from: &Spot, to: &Spot) -> io::Result<()> {
    let found = from.stat()?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return copy_one((from.directory(), from.name()), (to.directory(), to.name()), &found);
    }
    let source = Descent::open(from.directory(), from.name())?;
    mkdirat(to.directory(), to.name(), PRIVATE)?;
    let copy = Descent::open(to.directory(), to.name())?;
    let mut copying =
        Copying { from: Descent::begin(source), to: Descent::begin(copy), directories: Vec::new(), waiting: 0 };
    copying.check_new()?;
    copying.copy_files()?;
    while copying.step()? {}
    Ok(())
}

/// A directory that is being copied, and those below it.
struct Copying {
    from: Descent,
    to: Descent,
    /// For each directory from the top to here, those in it that are still to be copied.
    directories: Vec<Vec<OsString>>,
    /// How many those are.
    waiting: usize,
}

impl Copying {
    /// Goes into the next directory, or finishes this one; whether there is more to do.
    fn step(&mut self) -> io::Result<bool> {
        let Some(left) = self.directories.last_mut() else { return Ok(false) };
        if let Some(name) = left.pop() {
            self.waiting -= 1;
            self.from.enter(&name)?;
            mkdirat(self.to.here(), &name, PRIVATE)?;
            self.to.enter(&name)?;
            self.check_new()?;
            self.copy_files()?;
            return Ok(true);
        }
        dress(self.from.here(), self.to.here())?;
        self.directories.pop();
        if self.directories.is_empty() {
            return Ok(false);
        }
        self.from.leave()?;
        self.to.leave()?;
        Ok(true)
    }

    /// Whether the directory that was made is the one that was opened, and not another that was put in its place.
    fn check_new(&self) -> io::Result<()> {
        let found = fstat(self.to.here())?;
        let is_own = found.st_uid == own_uid().as_raw() && found.st_mode & 0o777 == PRIVATE.as_raw_mode();
        if is_own && self.to.is_empty()? {
            Ok(())
        } else {
            Err(io::Error::other("a directory of the copy was replaced while it was made"))
        }
    }

    /// Copies all that is no directory, and notes the directories.
    fn copy_files(&mut self) -> io::Result<()> {
        let (from, to) = (self.from.here(), self.to.here());
        let (mut directories, mut waiting) = (Vec::new(), self.waiting);
        self.from.entries(|name, kind| {
            let found = match kind {
                FileType::Directory => None,
                _ => Some(statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?),
            };
            match found.filter(|found| FileType::from_raw_mode(found.st_mode) != FileType::Directory) {
                Some(found) => copy_one((from, name), (to, name), &found),
                None if waiting < WAITING_MAX => {
                    waiting += 1;
                    directories.push(name.to_owned());
                    Ok(())
                }
                None => {
                    Err(io::Error::other(format!("there are more than {WAITING_MAX} directories to copy at a time")))
                }
            }
        })?;
        self.waiting = waiting;
        self.directories.push(directories);
        Ok(())
    }
}

/// A name in a directory.
type Name<'a> = (BorrowedFd<'a>, &'a OsStr);

fn copy_one(from: Name<'_>, to: Name<'_>, found: &Stat) -> io::Result<()> {
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Symlink => copy_link(from, to, found),
        FileType::RegularFile => copy_file(from, to),
        _ => Err(not_copied(from.1)),
    }
}

fn not_copied(name: &OsStr) -> io::Error {
    let message = format!("{} is a device, a pipe or a socket, which is not copied", name.display());
    io::Error::new(io::ErrorKind::CrossesDevices, message)
}

fn copy_file((directory, name): Name<'_>, (to, copy): Name<'_>) -> io::Result<()> {
    let source = opened::regular(directory, name, OFlags::NOFOLLOW)?.ok_or_else(|| not_copied(name))?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copied = File::from(openat(to, copy, flags, Mode::RUSR | Mode::WUSR)?);
    copy_contents(&source, &copied, 0)?;
    dress(&source, &copied)
}

fn copy_link((directory, name): Name<'_>, (to, copy): Name<'_>, found: &Stat) -> io::Result<()> {
    symlinkat(readlinkat(directory, name, Vec::new())?.as_c_str(), to, copy)?;
    let made = openat(to, copy, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    // A link's owner gives nobody any rights; that of what was put in its place might.
    if FileType::from_raw_mode(fstat(&made)?.st_mode) != FileType::Symlink {
        return Err(io::Error::other("a link of the copy was replaced while it was made"));
    }
    let (user, group) = (RawUid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    match chownat(&made, "", Some(user), Some(group), AtFlags::EMPTY_PATH) {
        Err(Errno::PERM) => Ok(()),
        owned => Ok(owned?),
    }
}

/// Gives a copy what there is to a file besides its contents.
fn dress(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let found = fstat(&from)?;
    metadata::write(&to, &metadata::read(&opened::path_of(&from)))?;
    let (user, group) = (RawUid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    let kept = match fchown(&to, Some(user), Some(group)) {
        Ok(()) => 0o7777,
        // The user may not give files away. The rights that a program has by its owner do not pass to another owner.
        Err(Errno::PERM) => 0o1777,
        Err(errno) => return Err(errno.into()),
    };
    fchmod(&to, Mode::from_raw_mode(found.st_mode & kept))?;
    let modified = Timespec { tv_sec: found.st_mtime, tv_nsec: i64::try_from(found.st_mtime_nsec).unwrap_or(0) };
    let unchanged = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Ok(futimens(&to, &Timestamps { last_access: unchanged, last_modification: modified })?)
}

/// Whose files this thread makes.
fn own_uid() -> Uid {
    // A number that is no user's changes nothing, and the answer is who it was before.
    setfsuid(Uid::from_raw(u32::MAX))
}

/// Nobody else looks into a copy before it is whole.
const PRIVATE: Mode = Mode::RWXU;

/// What one copy may keep in memory.
const WAITING_MAX: usize = 200_000;
