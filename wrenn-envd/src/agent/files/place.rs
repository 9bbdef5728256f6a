//! Where a file goes, and how it gets there: whole, in one step. All of it waits for the disk.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::agent::{
    api_error::ApiError,
    disk::{
        copy::copy_contents,
        metadata,
        temporary::{Temporary, Upload},
    },
    guest_path::is_named,
    identity::Identity,
    users::User,
};

/// A place that a file may be put at.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    parent: PathBuf,
    replaced: Option<Metadata>,
}

impl Place {
    /// Looks at what `path` leads to: nothing yet, or a regular file that the caller may write. A link's target is meant,
    /// and not the link.
    pub(super) fn find(path: &Path) -> Result<Self, ApiError> {
        let name = path.display();
        let failed = |error: io::Error| ApiError::from_io(&name.to_string(), &error);
        let path = follow(path).map_err(failed)?;
        let (true, Some(parent)) = (is_named(&path), path.parent()) else {
            return Err(ApiError::bad_request(format!("{name} names no file")));
        };
        let replaced = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            found => Some(found.map_err(failed)?),
        };
        if let Some(found) = &replaced {
            if !found.is_file() {
                return Err(ApiError::bad_request(format!("{name} is no regular file")));
            }
            accessat(CWD, &path, Access::WRITE_OK, AtFlags::EACCESS).map_err(|errno| failed(errno.into()))?;
        }
        Ok(Self { parent: parent.to_owned(), path, replaced })
    }

    /// A new file to write to, near enough to be renamed into place, and its name.
    pub(super) fn spool(&self) -> Result<(File, Temporary), ApiError> {
        let upload = if self.replaced.is_some() { Upload::Replacement } else { Upload::New };
        // What is missing of the directories is made at the end, so that an upload that breaks off leaves none.
        let directory = self.parent.ancestors().find(|directory| directory.is_dir()).unwrap_or_else(|| Path::new("/"));
        create_in(directory, upload)
    }
}

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

    /// Puts the file at `path` as `user`, in one step: whoever looks finds the old file or the new one.
    ///
    /// A file that is replaced passes on its owner, group and permissions; other names of it (hard links), access lists
    /// and attributes stay with the old one.
    pub(super) fn put(self, path: &Path, user: &User, keys: &BTreeMap<String, String>) -> Result<(), ApiError> {
        let failed = |error: io::Error| ApiError::from_io(&path.display().to_string(), &error);
        let identity = Identity::assume(user).map_err(failed)?;
        let place = Place::find(path)?;
        make_all(&place.parent).map_err(failed)?;
        let (file, temporary) = self.beside(&place)?;
        metadata::write(&file, keys)
            .map_err(|error| ApiError::bad_request(format!("{}: the metadata is not kept: {error}", path.display())))?;
        // To give a file away takes rights that the user has not.
        drop(identity);
        dress(&file, &place, user).map_err(failed)?;
        let _identity = Identity::assume(user).map_err(failed)?;
        fs::rename(&temporary.path, &place.path).map_err(failed)?;
        temporary.keep();
        Ok(())
    }

    /// This file, on the file system of `place`.
    fn beside(self, place: &Place) -> Result<(File, Temporary), ApiError> {
        let failed = |error: io::Error| ApiError::from_io(&place.path.display().to_string(), &error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOFOLLOW.bits() | OFlag::O_NONBLOCK.bits())
            .open(&self.temporary.path)
            .map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if (found.dev(), found.ino()) != self.identity {
            return Err(failed(io::Error::other("the upload was replaced before it was finished")));
        }
        if fs::metadata(&place.parent).map_err(failed)?.dev() == found.dev() {
            return Ok((file, self.temporary));
        }
        let upload = if place.replaced.is_some() { Upload::Replacement } else { Upload::New };
        let (copy, temporary) = create_in(&place.parent, upload)?;
        copy_contents(&file, &copy, 0).map_err(failed)?;
        Ok((copy, temporary))
    }
}

/// Gives a new file the owner and permissions of what it replaces, or else the usual ones.
fn dress(file: &File, place: &Place, user: &User) -> io::Result<()> {
    let Some(replaced) = &place.replaced else { return file.set_permissions(Permissions::from_mode(NEW_FILE_MODE)) };
    let found = file.metadata()?;
    if (found.uid(), found.gid()) != (replaced.uid(), replaced.gid()) {
        fchown(file, Some(replaced.uid()), Some(replaced.gid()))?;
    }
    // Writing to a program takes its special rights away, unless it is root that writes.
    let kept = if user.uid == 0 { 0o7777 } else { 0o1777 };
    file.set_permissions(Permissions::from_mode(replaced.mode() & kept))
}

fn create_in(directory: &Path, upload: Upload) -> Result<(File, Temporary), ApiError> {
    let temporary = Temporary::beside(directory, upload);
    let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary.path);
    let what = format!("{}: a new file in it", directory.display());
    Ok((opened.map_err(|error| ApiError::from_io(&what, &error))?, temporary))
}

fn make_all(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(NEW_DIRECTORY_MODE).create(directory).map_err(|error| match error.kind() {
        // A file is in the way.
        io::ErrorKind::AlreadyExists => io::ErrorKind::NotADirectory.into(),
        _ => error,
    })
}

/// What `path` leads to. Its last part need not exist, and is never a link afterwards.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match (fs::read_link(&path), path.parent()) {
            (Ok(target), Some(parent)) => path = parent.join(target),
            _ => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// As many as the kernel follows.
const LINKS_MAX: usize = 40;

const NEW_FILE_MODE: u32 = 0o644;
const NEW_DIRECTORY_MODE: u32 = 0o755;
