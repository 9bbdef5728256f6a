//! Unpacks a tar archive below a directory, with the rights of the calling thread.
//!
//! Each name is resolved by the kernel as if the directory were the root (`RESOLVE_IN_ROOT`): links of the archive and of the
//! directory are followed, and none leads out. A `..` in a name is refused.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::Timespec,
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timestamps, UTIME_OMIT, Uid, XattrFlags,
        chmodat, chownat, fstat, linkat, mkdirat, mknodat, openat, openat2, setxattr, statat, symlinkat, unlinkat,
        utimensat,
    },
    io::Errno,
};

use super::tar_entries::{Entry, Kind, each};
use crate::agent::{api_error::ApiError, disk::opened::path_of};

/// Unpacks an archive below the directory `top`. What is there already stays, but for what has a name of the archive's: a
/// directory is kept and takes the entry's rights, anything else is replaced.
pub(super) fn unpack(top: &Path, archive: impl Read) -> Result<(), ApiError> {
    let failed = |error: io::Error| ApiError::from_io(&top.display().to_string(), &error);
    let root = openat(CWD, top, DIRECTORY, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let mut unpacker = Unpacker { root, nearest: None, directories: Vec::new() };
    each(archive, |entry, content| {
        let name = entry.path.display().to_string();
        unpacker.entry(entry, content).map_err(|error| ApiError::from_io(&name, &error))
    })?;
    unpacker.finish()
}

struct Unpacker {
    root: OwnedFd,
    /// The directory of the entry before: most entries follow one of the same directory.
    nearest: Option<(PathBuf, Rc<OwnedFd>)>,
    /// They take their rights and times at the end, when nothing is written in them any more.
    directories: Vec<Directory>,
}

struct Directory {
    path: PathBuf,
    /// Device and inode: a user of the guest may have put another one in its place.
    identity: (u64, u64),
    look: Look,
}

/// What an entry says of its file beside the content.
#[derive(Clone)]
struct Look {
    mode: u32,
    uid: u32,
    gid: u32,
    modified: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
        let path = below(&entry.path)?;
        // The directory itself is not the archive's.
        let (Some(name), Some(above)) = (path.file_name(), path.parent()) else { return Ok(()) };
        let directory = self.directory(above)?;
        let look = Look::of(entry);
        if entry.kind == Kind::Directory {
            return self.make_directory(&directory, name, &path, look);
        }
        if entry.kind != Kind::File {
            self.nearest = None;
        }
        match unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => return Err(io::ErrorKind::IsADirectory.into()),
            Err(errno) => return Err(errno.into()),
        }
        let private = Mode::from_raw_mode(0o600);
        match &entry.kind {
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(openat(&directory, name, flags, private)?);
                write(content, &file)?;
                return look.give(&file);
            }
            Kind::Symlink(target) => {
                symlinkat(target, &directory, name)?;
                return look.give_link(&directory, name);
            }
            Kind::Link(target) => {
                let target = below(target)?;
                let (Some(last), Some(above)) = (target.file_name(), target.parent()) else {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a link to a directory"));
                };
                // It has the rights of what it is a name of.
                return Ok(linkat(self.directory(above)?, last, &directory, name, AtFlags::empty())?);
            }
            Kind::CharDevice(device) => mknodat(&directory, name, FileType::CharacterDevice, private, *device)?,
            Kind::BlockDevice(device) => mknodat(&directory, name, FileType::BlockDevice, private, *device)?,
            Kind::Fifo | Kind::Directory => mknodat(&directory, name, FileType::Fifo, private, 0)?,
        }
        look.give(openat(&directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn make_directory(&mut self, directory: &OwnedFd, name: &OsStr, path: &Path, look: Look) -> io::Result<()> {
        let made = || mkdirat(directory, name, Mode::from_raw_mode(0o700));
        match made() {
            Err(Errno::EXIST) => {
                let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let is_link = FileType::from_raw_mode(found.st_mode) == FileType::Symlink;
                match self.open(path) {
                    // A link to a directory stays, and what it leads to keeps its rights.
                    Ok(_) if is_link => return Ok(()),
                    Ok(_) => {}
                    Err(Errno::NOTDIR | Errno::NOENT | Errno::LOOP) => {
                        self.nearest = None;
                        unlinkat(directory, name, AtFlags::empty())?;
                        made()?;
                    }
                    Err(errno) => return Err(errno.into()),
                }
            }
            made => made?,
        }
        let identity = identity(&fstat(self.open(path)?)?);
        self.directories.push(Directory { path: path.to_owned(), identity, look });
        Ok(())
    }

    /// The directory at a path below the top. What is missing of it is made.
    fn directory(&mut self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        if let Some((nearest, directory)) = &self.nearest
            && nearest == path
        {
            return Ok(directory.clone());
        }
        let directory = Rc::new(match self.open(path) {
            Err(Errno::NOENT) => self.make(path)?,
            opened => opened?,
        });
        self.nearest = Some((path.to_owned(), directory.clone()));
        Ok(directory)
    }

    fn make(&self, path: &Path) -> io::Result<OwnedFd> {
        let (mut here, mut directory) = (PathBuf::new(), self.open(Path::new(""))?);
        for name in path {
            here.push(name);
            directory = match self.open(&here) {
                Err(Errno::NOENT) => {
                    mkdirat(&directory, name, Mode::from_raw_mode(0o755))?;
                    self.open(&here)?
                }
                opened => opened?,
            };
        }
        Ok(directory)
    }

    fn open(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RACES_MAX {
            // A name that is moved meanwhile has the kernel give up.
            match openat2(&self.root, path, DIRECTORY, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                opened => return opened,
            }
        }
        Err(Errno::AGAIN)
    }

    fn finish(self) -> Result<(), ApiError> {
        for Directory { path, identity: expected, look } in self.directories.iter().rev() {
            let finish = || {
                let directory = self.open(path)?;
                if identity(&fstat(&directory)?) != *expected {
                    return Err(io::Error::other("it was replaced while the archive was unpacked"));
                }
                look.give(directory)
            };
            finish().map_err(|error| ApiError::from_io(&path.display().to_string(), &error))?;
        }
        Ok(())
    }
}

impl Look {
    fn of(entry: &Entry) -> Self {
        let Entry { mode, uid, gid, modified, ref xattrs, .. } = *entry;
        Self { mode, uid, gid, modified, xattrs: xattrs.clone() }
    }

    /// Gives a file, which is no link, its owner, attributes, mode and time, in this order: a change of the owner takes
    /// capabilities and special rights away.
    fn give(&self, file: impl AsFd) -> io::Result<()> {
        let (found, path) = (fstat(&file)?, path_of(&file));
        if (found.st_uid, found.st_gid) != (self.uid, self.gid) {
            self.own(&path, AtFlags::empty())?;
        }
        for (name, value) in &self.xattrs {
            if !name.starts_with("user.") && name != CAPABILITY {
                let message = format!("the attribute {name} is none that is unpacked: user.* and {CAPABILITY} are");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            let set = setxattr(&path, name.as_str(), value, XattrFlags::empty());
            set.map_err(|errno| {
                io::Error::new(io::Error::from(errno).kind(), format!("the attribute {name}: {errno}"))
            })?;
        }
        chmodat(CWD, &path, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        Ok(utimensat(CWD, &path, &self.times(), AtFlags::empty())?)
    }

    fn give_link(&self, directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (found.st_uid, found.st_gid) != (self.uid, self.gid) {
            self.own(&path_of(directory).join(name), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(utimensat(directory, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn own(&self, path: &Path, flags: AtFlags) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        Ok(chownat(CWD, path, Some(uid), Some(gid), flags)?)
    }

    fn times(&self) -> Timestamps {
        Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: self.modified }
    }
}

/// Blocks of zeros become holes.
fn write(content: &mut dyn Read, mut file: &File) -> io::Result<()> {
    let (mut buffer, mut length) = (vec![0; BLOCK_BYTES], 0_u64);
    loop {
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match content.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        let piece = &buffer[..filled];
        length += filled as u64;
        if piece.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Start(length))?;
        } else {
            file.write_all(piece)?;
        }
        if filled < BLOCK_BYTES {
            return file.set_len(length);
        }
    }
}

/// The path of an entry, relative to the top.
fn below(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "`..` in a name of an archive is refused"));
            }
        }
    }
    Ok(clean)
}

fn identity(found: &Stat) -> (u64, u64) {
    (found.st_dev, found.st_ino)
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const CAPABILITY: &str = "security.capability";
const RACES_MAX: u32 = 16;
const BLOCK_BYTES: usize = 64 << 10;
