//! A file that is written, and its way to its place. All of it waits for the disk.
//!
//! ```text
//!  put -> stage (a name beside the place) -> dress -> rename
//!             \---------------------------------\----> overwrite   (its directory does not let its user do that)
//! ```

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, linkat, openat};

use super::place::{Missing, Place, Replaced, is_refusal};
use crate::agent::{
    api_error::ApiError,
    disk::{copy::copy_contents, metadata, opened, spot::Spot, temporary::Temporary},
    identity::Identity,
    users::User,
};

/// A file that is written, but not in its place.
#[derive(Debug)]
pub(super) struct Spooled {
    temporary: Temporary,
    /// Device and inode, so that nobody passes another file off as this one.
    identity: (u64, u64),
}

impl Spooled {
    pub(super) fn new(file: &File, temporary: Temporary) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { temporary, identity: (found.dev(), found.ino()) })
    }

    /// Puts the file at `path` as `user`, in one step where its directory lets the user do that: whoever looks finds the old
    /// file or the new one.
    ///
    /// A file that is replaced passes on its owner, group and permissions; other names of it (hard links), access lists
    /// and attributes stay with the old one. One that cannot be replaced is written in place, and keeps them all.
    pub(super) fn put(self, path: &Path, user: &User, keys: &BTreeMap<String, String>) -> Result<(), ApiError> {
        let failed = |error: io::Error| ApiError::from_io(&path.display().to_string(), &error);
        let kept = |error: rustix::io::Errno| {
            ApiError::bad_request(format!("{}: the metadata is not kept: {error}", path.display()))
        };
        let identity = Identity::assume(user).map_err(failed)?;
        let place = Place::find(path, Missing::Make)?;
        let spot = place.spot.as_ref().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let file = self.open().map_err(failed)?;
        let overwrite = |replaced: &Replaced, from: &File| {
            metadata::replace(replaced.overwrite(from).map_err(failed)?, keys).map_err(kept)
        };
        let staged = match (Staged::beside(&place, spot, &file, &self.temporary), &place.replaced) {
            (Err(error), Some(replaced)) if is_refusal(&error) => {
                overwrite(replaced, &file)?;
                drop(identity);
                return self.temporary.remove().map_err(failed);
            }
            (staged, _) => staged.map_err(failed)?,
        };
        let file = staged.copy.as_ref().unwrap_or(&file);
        metadata::write(file, keys).map_err(kept)?;
        // To give a file away takes rights that the user has not.
        drop(identity);
        place.dress(file, user).map_err(failed)?;
        let identity = Identity::assume(user).map_err(failed)?;
        let is_renamed = match (staged.spot.rename(spot).map_err(io::Error::from), &place.replaced) {
            (Err(error), Some(replaced)) if is_refusal(&error) => overwrite(replaced, file).map(|()| false)?,
            (renamed, _) => renamed.map(|()| true).map_err(failed)?,
        };
        drop(identity);
        let (in_place, others) = match staged.temporary {
            Some(staged) => (staged, Some(self.temporary)),
            None => (self.temporary, None),
        };
        let left = if is_renamed {
            in_place.keep();
            others
        } else {
            others.map_or(Ok(()), Temporary::remove).map_err(failed)?;
            Some(in_place)
        };
        left.map_or(Ok(()), Temporary::remove).map_err(failed)
    }

    fn open(&self) -> io::Result<File> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(self.temporary.path())?;
        let found = file.metadata()?;
        if (found.dev(), found.ino()) == self.identity {
            Ok(file)
        } else {
            Err(io::Error::other("the upload was replaced before it was finished"))
        }
    }
}

/// A file in the very directory that it is for, so that a rename puts it in its place whatever becomes of paths meanwhile.
struct Staged {
    spot: Spot,
    /// The name that it has there; `None` for the one that it had.
    temporary: Option<Temporary>,
    /// `None` for the very file.
    copy: Option<File>,
}

impl Staged {
    fn beside(place: &Place, spot: &Spot, file: &File, temporary: &Temporary) -> io::Result<Self> {
        let path = temporary.path();
        if let (Some(directory), Some(name)) = (path.parent(), path.file_name())
            && identity(&open_directory(directory)?)? == identity(spot.directory())?
        {
            return Ok(Self { spot: spot.beside(name)?, temporary: None, copy: None });
        }
        let name = Temporary::beside(&place.path, place.upload())?;
        let staged = spot.beside(name.path().file_name().unwrap_or_default())?;
        // By its descriptor, so that it is this file; which another disk cannot have, nor one without links.
        let linked = linkat(CWD, opened::path_of(file), spot.directory(), staged.name(), AtFlags::SYMLINK_FOLLOW);
        let copy = match linked {
            Ok(()) => None,
            Err(_) => {
                let copy = File::from(staged.open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600)?);
                copy_contents(file, &copy, 0)?;
                Some(copy)
            }
        };
        Ok(Self { spot: staged, temporary: Some(name), copy })
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Device and inode.
fn identity(file: impl AsFd) -> io::Result<(u64, u64)> {
    let found = fstat(file)?;
    Ok((found.st_dev, found.st_ino))
}
