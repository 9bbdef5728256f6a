//! Changes to the tree of directories, and a look at a part of it. All of it waits for the disk.

use std::{
    fs::{self, DirEntry},
    io,
    path::Path,
};

use rustix::io::Errno;

use super::{entry::describe, error::FileError, names::Names, transfer::transfer};
use crate::{
    agent::{
        disk::{
            removal,
            spot::{Spot, make_directories},
        },
        guest_path::is_named,
    },
    proto::filesystem::EntryInfo,
};

pub(super) fn stat(path: &Path) -> Result<EntryInfo, FileError> {
    describe(path, &Names::read()).map_err(|error| match error.kind() {
        // Below a file nothing can be: it is missing like any other.
        io::ErrorKind::NotADirectory => FileError::Io(path.display().to_string(), io::ErrorKind::NotFound.into()),
        _ => FileError::at(path)(error),
    })
}

/// Makes a directory and those on the way to it.
pub(super) fn make_dir(path: &Path) -> Result<EntryInfo, FileError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(FileError::Exists(path.display().to_string())),
        Ok(_) => return Err(FileError::Invalid(format!("{} exists, and is no directory", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(FileError::at(path)(error)),
    }
    make_directories(path, NEW_DIRECTORY_MODE).map_err(FileError::at(path))?;
    stat(path)
}

/// Renames `source`, and makes the directories on the way to `destination`.
pub(super) fn rename(source: &Path, destination: &Path) -> Result<EntryInfo, FileError> {
    for path in [source, destination] {
        refuse_unnamed(path)?;
    }
    // First, so that a source that is missing makes no directory.
    let from = Spot::find(source).map_err(FileError::at(source))?;
    from.stat().map_err(|errno| FileError::at(source)(errno.into()))?;
    let to = Spot::make(destination, NEW_DIRECTORY_MODE).map_err(FileError::at(destination))?;
    let renamed = match from.rename(&to) {
        Err(Errno::XDEV) => transfer(&from, &to),
        renamed => renamed.map_err(io::Error::from),
    };
    renamed.map_err(|error| FileError::Io(format!("{} to {}", source.display(), destination.display()), error))?;
    stat(destination)
}

/// Removes a file, or a directory with all that is in it. What is not there is removed already.
pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    refuse_unnamed(path)?;
    match Spot::find(path).and_then(|spot| removal::remove(&spot)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(FileError::at(path)),
    }
}

/// What lies below `path`, `depth` levels deep, each directory before what is in it, by name. Symbolic links below `path`
/// are not followed.
pub(super) fn list(path: &Path, depth: u32) -> Result<Vec<EntryInfo>, FileError> {
    let found = fs::metadata(path).map_err(FileError::at(path))?;
    if !found.is_dir() {
        return Err(FileError::Invalid(format!("{} is no directory", path.display())));
    }
    let (names, mut entries) = (Names::read(), Vec::new());
    // The directories that are being listed, with what is left of each; the length is the depth.
    let mut levels = vec![sorted(path)?.into_iter()];
    while let Some(level) = levels.last_mut() {
        let Some(next) = level.next() else {
            levels.pop();
            continue;
        };
        let next_path = next.path();
        match describe(&next_path, &names) {
            Ok(entry) => entries.push(entry),
            // It went while the directory was being listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(FileError::at(&next_path)(error)),
        }
        if entries.len() > ENTRIES_MAX {
            let message = format!("{} has more than {ENTRIES_MAX} entries; list fewer levels", path.display());
            return Err(FileError::TooMany(message));
        }
        let is_directory = next.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory && levels.len() < usize::try_from(depth).unwrap_or(usize::MAX) {
            levels.push(sorted(&next_path)?.into_iter());
        }
    }
    Ok(entries)
}

fn sorted(directory: &Path) -> Result<Vec<DirEntry>, FileError> {
    let entries: io::Result<Vec<DirEntry>> = fs::read_dir(directory).and_then(Iterator::collect);
    let mut entries = match entries {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        entries => entries.map_err(FileError::at(directory))?,
    };
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

/// Refuses "/" and what ends in "..".
fn refuse_unnamed(path: &Path) -> Result<(), FileError> {
    if is_named(path) {
        Ok(())
    } else {
        Err(FileError::Invalid(format!("{} is no name that can be moved or removed", path.display())))
    }
}

/// What one answer may hold, so that a whole disk does not end up in memory.
const ENTRIES_MAX: usize = 100_000;

const NEW_DIRECTORY_MODE: u32 = 0o777;
