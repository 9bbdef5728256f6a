use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    vec,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, openat};

use super::{
    entry::{describe_in, describe_unreadable, text_bytes},
    error::FileError,
    names::Names,
};
use crate::{
    agent::disk::descent::Descent,
    proto::filesystem::{self as wire, EntryInfo},
};

/// What lies below `path`, `depth` levels deep, each directory before what is in it, by name. Symbolic links below `path`
/// are not followed. What cannot be read is marked, but for `path` itself.
pub(super) fn list(path: &Path, depth: u32) -> Result<Vec<EntryInfo>, FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = openat(CWD, path, flags, Mode::empty()).map_err(|errno| match io::Error::from(errno) {
        error if error.kind() == io::ErrorKind::NotADirectory => {
            FileError::Invalid(format!("{} is no directory", path.display()))
        }
        error => FileError::at(path)(error),
    })?;
    let mut listing = Listing {
        names: Names::read(),
        walk: Descent::begin(top),
        here: path.to_owned(),
        levels: Vec::new(),
        entries: Vec::new(),
        room: Room { entries: ENTRIES_MAX, bytes: BYTES_MAX },
    };
    listing.read_names().map_err(|error| error.of(path, path))?;
    while listing.step(depth).map_err(|error| error.of(path, &listing.here))? {}
    Ok(listing.entries)
}

struct Listing {
    names: Names,
    walk: Descent,
    here: PathBuf,
    /// The directories that are being listed, with what is left of each; the length is the depth.
    levels: Vec<vec::IntoIter<(OsString, FileType)>>,
    entries: Vec<EntryInfo>,
    room: Room,
}

impl Listing {
    /// Describes the next entry, and goes into it where it is a directory; whether there was one.
    fn step(&mut self, depth: u32) -> Result<bool, Failure> {
        let Some(level) = self.levels.last_mut() else { return Ok(false) };
        let Some((name, file_type)) = level.next() else {
            self.levels.pop();
            if !self.levels.is_empty() {
                self.walk.leave()?;
                self.here.pop();
            }
            return Ok(true);
        };
        self.room.give_back(&name);
        let path = self.here.join(&name);
        let mut entry = match describe_in(self.walk.here(), &name, &path, &self.names) {
            // It went while the directory was being listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => describe_unreadable(&path, file_type, &error),
            Ok(entry) => entry,
        };
        let is_directory = entry.r#type == wire::FileType::FILE_TYPE_DIRECTORY && !entry.is_symlink;
        let is_left_out = self.levels.len() >= usize::try_from(depth).unwrap_or(usize::MAX);
        let entered = if is_directory && !is_left_out && entry.unreadable.is_none() {
            self.enter(&name, &mut entry)?
        } else {
            None
        };
        self.room.take(text_bytes(&entry))?;
        self.entries.push(entry);
        if let Some(names) = entered {
            self.levels.push(names);
            self.here = path;
        }
        Ok(true)
    }

    /// Goes into a directory and reads its names, or marks its entry with the reason why not.
    fn enter(
        &mut self,
        name: &OsString,
        entry: &mut EntryInfo,
    ) -> Result<Option<vec::IntoIter<(OsString, FileType)>>, Failure> {
        let names = match self.walk.enter(name) {
            Ok(()) => self.sorted(),
            Err(error) => {
                entry.unreadable = Some(error.to_string());
                return Ok(None);
            }
        };
        match names {
            Err(Failure::Io(error)) => {
                self.walk.leave()?;
                entry.unreadable = Some(error.to_string());
                Ok(None)
            }
            names => names.map(Some),
        }
    }

    fn read_names(&mut self) -> Result<(), Failure> {
        let names = self.sorted()?;
        self.levels.push(names);
        Ok(())
    }

    fn sorted(&mut self) -> Result<vec::IntoIter<(OsString, FileType)>, Failure> {
        let (mut names, room) = (Vec::new(), &mut self.room);
        self.walk.entries(|name, file_type| {
            room.take(name.len())?;
            names.push((name.to_owned(), file_type));
            Ok::<_, Failure>(())
        })?;
        names.sort_by(|(name, _), (other, _)| name.cmp(other));
        Ok(names.into_iter())
    }
}

/// What one answer, and what is read for it, may still take of memory.
struct Room {
    entries: usize,
    bytes: usize,
}

impl Room {
    fn take(&mut self, bytes: usize) -> Result<(), Failure> {
        let left = (self.entries.checked_sub(1), self.bytes.checked_sub(bytes));
        let (Some(entries), Some(bytes)) = left else { return Err(Failure::NoRoom) };
        *self = Self { entries, bytes };
        Ok(())
    }

    /// A name is described, and takes its room as an entry.
    fn give_back(&mut self, name: &OsString) {
        self.entries += 1;
        self.bytes += name.len();
    }
}

#[derive(Debug)]
enum Failure {
    NoRoom,
    Io(io::Error),
}

impl Failure {
    fn of(self, list: &Path, at: &Path) -> FileError {
        match self {
            Self::NoRoom => FileError::TooMany(format!(
                "{} has more than {ENTRIES_MAX} entries, or more than {} MiB of names and metadata; list fewer levels",
                list.display(),
                BYTES_MAX >> 20
            )),
            Self::Io(error) => FileError::at(at)(error),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What one answer may hold, so that a whole disk does not end up in memory.
const ENTRIES_MAX: usize = 100_000;
const BYTES_MAX: usize = 32 << 20;
