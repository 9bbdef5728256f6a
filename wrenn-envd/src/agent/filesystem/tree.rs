//! Changes to the tree of directories, and a look at one entry of it. All of it waits for the disk.

use std::{fs, io, path::Path};

use rustix::{
    fs::{FileType, RawMode},
    io::Errno,
};

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

/// What a path may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Anything,
    /// It ends in a slash.
    Directory,
}

/// Renames `source`, and makes the directories on the way to `destination`.
pub(super) fn rename(source: &Path, destination: &Path, named: Named) -> Result<EntryInfo, FileError> {
    for path in [source, destination] {
        refuse_unnamed(path)?;
    }
    // First, so that a source that is missing makes no directory.
    let from = Spot::find(source).map_err(FileError::at(source))?;
    let found = from.stat().map_err(|errno| FileError::at(source)(errno.into()))?;
    if named == Named::Directory && FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        let (source, destination) = (source.display(), destination.display());
        return Err(FileError::Invalid(format!("{destination}/ is a directory's path, and {source} is no directory")));
    }
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

/// Refuses "/" and what ends in "..".
fn refuse_unnamed(path: &Path) -> Result<(), FileError> {
    if is_named(path) {
        Ok(())
    } else {
        Err(FileError::Invalid(format!("{} is no name that can be moved or removed", path.display())))
    }
}

const NEW_DIRECTORY_MODE: RawMode = 0o777;
