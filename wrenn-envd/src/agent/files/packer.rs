//! Packs a directory or a file as a tar archive, with the rights of the calling thread.
//!
//! No link is followed below the path that is packed, and no other file system is gone into. A file with several names comes
//! once, and as hard links after that. Sockets are left out.

use std::{
    collections::{HashMap, hash_map},
    ffi::{CStr, OsStr, OsString},
    fs::File,
    io::{self, BufWriter, Read, Write},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, lgetxattr, llistxattr, major, minor, openat, readlinkat,
        statat,
    },
    io::Errno,
};
use tar::{Builder, EntryType, Header};

use crate::agent::{
    api_error::ApiError,
    disk::{
        descent::Descent,
        opened::{self, path_of},
        spot::Spot,
    },
};

/// What is to be packed.
pub(super) enum Packer {
    Directory(OwnedFd),
    File(Spot),
}

impl Packer {
    pub(super) fn open(path: &Path) -> Result<Self, ApiError> {
        let failed = |error: io::Error| ApiError::from_io(&path.display().to_string(), &error);
        // The path itself may be a link.
        match openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOTDIR) => {
                let spot = Spot::find(path).map_err(failed)?;
                spot.stat().map_err(|errno| failed(errno.into()))?;
                Ok(Self::File(spot))
            }
            opened => opened.map(Self::Directory).map_err(|errno| failed(errno.into())),
        }
    }

    pub(super) fn pack(self, out: impl Write) -> io::Result<()> {
        let out = Builder::new(BufWriter::with_capacity(BUFFER_BYTES, out));
        let mut packing = Packing { out, links: HashMap::new() };
        match self {
            Self::Directory(top) => packing.tree(top)?,
            Self::File(spot) => packing.entry(spot.directory(), spot.name(), Path::new(spot.name()), &spot.stat()?)?,
        }
        packing.out.into_inner()?.flush()
    }
}

struct Packing<W: Write> {
    out: Builder<W>,
    /// By device and inode: the first name of a file that has several.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Packing<W> {
    fn tree(&mut self, top: OwnedFd) -> io::Result<()> {
        let device = fstat(&top)?.st_dev;
        let mut walk = Descent::begin(top);
        let mut levels = vec![names(&walk)?.into_iter()];
        let mut path = PathBuf::new();
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.next() else {
                levels.pop();
                if !levels.is_empty() {
                    walk.leave()?;
                    path.pop();
                }
                continue;
            };
            path.push(&name);
            let found = statat(walk.here(), &name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.entry(walk.here(), &name, &path, &found).map_err(|error| at(&path, &error))?;
            let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
            if is_directory && found.st_dev == device {
                walk.enter(&name).map_err(|error| at(&path, &error))?;
                levels.push(names(&walk)?.into_iter());
            } else {
                path.pop();
            }
        }
        Ok(())
    }

    fn entry(&mut self, directory: BorrowedFd<'_>, name: &OsStr, path: &Path, found: &Stat) -> io::Result<()> {
        let kind = match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => EntryType::Regular,
            FileType::Directory => EntryType::Directory,
            FileType::Symlink => EntryType::Symlink,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            _ => return Ok(()),
        };
        let mut header = header(kind, found);
        if kind != EntryType::Directory && found.st_nlink > 1 {
            match self.links.entry((found.st_dev, found.st_ino)) {
                hash_map::Entry::Occupied(first) => {
                    header.set_entry_type(EntryType::Link);
                    return self.out.append_link(&mut header, path, first.get());
                }
                hash_map::Entry::Vacant(place) => drop(place.insert(path.to_owned())),
            }
        }
        if kind == EntryType::Symlink {
            let target = readlinkat(directory, name, Vec::new())?.into_bytes();
            return self.out.append_link(&mut header, path, OsString::from_vec(target));
        }
        self.xattrs(&path_of(directory).join(name))?;
        match kind {
            EntryType::Regular => {
                let file = opened::regular(directory, name, OFlags::NOFOLLOW)?;
                let file = file.ok_or_else(|| io::Error::other("it was replaced while it was packed"))?;
                let bytes = file.metadata()?.len();
                header.set_size(bytes);
                self.out.append_data(&mut header, path, Exactly { file, left: bytes })
            }
            _ => self.out.append_data(&mut header, path, io::empty()),
        }
    }

    /// The attributes of the next entry. A file system that has none is no error.
    fn xattrs(&mut self, path: &Path) -> io::Result<()> {
        let mut names = vec![0; NAMES_BYTES_MAX];
        let length = match llistxattr(path, &mut names) {
            Err(Errno::NOTSUP) => return Ok(()),
            listed => listed?,
        };
        let names = names[..length].split_inclusive(|byte| *byte == 0);
        let mut records = Vec::new();
        for name in names.filter_map(|name| CStr::from_bytes_with_nul(name).ok()?.to_str().ok()) {
            if !name.starts_with("user.") && name != "security.capability" {
                continue;
            }
            let mut value = vec![0; VALUE_BYTES_MAX];
            let length = lgetxattr(path, name, &mut value)?;
            value.truncate(length);
            records.push((format!("SCHILY.xattr.{name}"), value));
        }
        self.out.append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }
}

fn header(kind: EntryType, found: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(found.st_mode & 0o7777);
    header.set_uid(found.st_uid.into());
    header.set_gid(found.st_gid.into());
    header.set_mtime(u64::try_from(found.st_mtime).unwrap_or(0));
    header.set_size(0);
    if matches!(kind, EntryType::Char | EntryType::Block) {
        // A header of GNU's has room for them.
        let _ = header.set_device_major(major(found.st_rdev));
        let _ = header.set_device_minor(minor(found.st_rdev));
    }
    header
}

/// The names in the directory where a walk is, sorted.
fn names(walk: &Descent) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    walk.entries(|name, _| {
        names.push(name.to_owned());
        Ok::<_, io::Error>(())
    })?;
    names.sort();
    Ok(names)
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A file that has to be as long as it was.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read(&mut buffer[..wanted])?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::other("a file became shorter while it was packed"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Each piece is a way to another thread.
const BUFFER_BYTES: usize = 256 << 10;
/// What the kernel has at most.
const NAMES_BYTES_MAX: usize = 64 << 10;
const VALUE_BYTES_MAX: usize = 64 << 10;
