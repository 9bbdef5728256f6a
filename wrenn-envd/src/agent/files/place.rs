use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, RawMode, Stat, Uid, accessat, fchmod, fchown, fstat,
        readlinkat,
    },
    io::Errno,
};

use crate::agent::{
    api_error::ApiError,
    disk::{
        copy::copy_contents,
        opened,
        spot::Spot,
        temporary::{Temporary, Upload},
    },
    guest_path::is_named,
    users::User,
};

/// A place that a file may be put at.
#[derive(Debug)]
pub(super) struct Place {
    /// Where it is in the end: no link.
    pub(super) path: PathBuf,
    /// `None` where its directory is missing.
    pub(super) spot: Option<Spot>,
    pub(super) replaced: Option<Replaced>,
}

/// A file that the caller may write, and what is known of that very file.
#[derive(Debug)]
pub(super) struct Replaced {
    file: OwnedFd,
    found: Stat,
}

/// What becomes of missing directories on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Leave,
    Make,
}

impl Place {
    /// Looks at what `path` leads to: nothing yet, or a regular file that the caller may write. A link's target is meant,
    /// and not the link.
    pub(super) fn find(path: &Path, missing: Missing) -> Result<Self, ApiError> {
        let name = path.display().to_string();
        let failed = |error: io::Error| ApiError::from_io(&name, &error);
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let (true, Some(parent)) = (is_named(&path), path.parent()) else {
                return Err(ApiError::bad_request(format!("{name} names no file")));
            };
            let Some(spot) = find_spot(&path, missing).map_err(failed)? else {
                return Ok(Self { path, spot: None, replaced: None });
            };
            let Some((file, found)) = look(&spot).map_err(failed)? else {
                return Ok(Self { path, spot: Some(spot), replaced: None });
            };
            if FileType::from_raw_mode(found.st_mode) == FileType::Symlink {
                let target = readlinkat(&file, "", Vec::new()).map_err(|errno| failed(errno.into()))?;
                path = parent.join(OsString::from_vec(target.into_bytes()));
                continue;
            }
            if !opened::is_regular(&found) {
                return Err(ApiError::bad_request(format!("{name} is no regular file")));
            }
            accessat(CWD, opened::path_of(&file), Access::WRITE_OK, AtFlags::EACCESS)
                .map_err(|errno| failed(errno.into()))?;
            return Ok(Self { path, spot: Some(spot), replaced: Some(Replaced { file, found }) });
        }
        Err(failed(Errno::LOOP.into()))
    }

    /// A new file to write to, and its name: near enough to be renamed into place, where its user may make one there.
    pub(super) fn spool(&self, user: &User) -> Result<(File, Temporary), ApiError> {
        // What is missing of the directories is made at the end, so that an upload that breaks off leaves none.
        let near = self.path.ancestors().skip(1).find(|directory| directory.is_dir()).unwrap_or_else(|| Path::new("/"));
        let mut created = Temporary::create(near, self.upload());
        if self.replaced.is_some() {
            // The file may be written in place all the same.
            for elsewhere in [Path::new("/tmp"), &user.home] {
                if created.as_ref().is_err_and(is_refusal) {
                    created = Temporary::create(elsewhere, self.upload());
                }
            }
        }
        created.map_err(|error| ApiError::from_io(&format!("{}: a new file in it", near.display()), &error))
    }

    pub(super) fn upload(&self) -> Upload {
        if self.replaced.is_some() { Upload::Replacement } else { Upload::New }
    }

    /// Gives a new file the owner and permissions of what it replaces, or else the usual ones.
    pub(super) fn dress(&self, file: &File, user: &User) -> io::Result<()> {
        let Some(Replaced { found: replaced, .. }) = &self.replaced else {
            return Ok(fchmod(file, Mode::from_raw_mode(NEW_FILE_MODE))?);
        };
        let found = fstat(file)?;
        if (found.st_uid, found.st_gid) != (replaced.st_uid, replaced.st_gid) {
            fchown(file, Some(Uid::from_raw(replaced.st_uid)), Some(Gid::from_raw(replaced.st_gid)))?;
        }
        // Writing to a program takes its special rights away, unless it is root that writes.
        let kept = if user.uid == 0 { 0o7777 } else { 0o1777 };
        Ok(fchmod(file, Mode::from_raw_mode(replaced.st_mode & kept))?)
    }
}

impl Replaced {
    /// Writes the contents of `from` into the file itself, and returns it. Who reads it meanwhile may read half of it; a disk
    /// that fills up leaves it cut.
    pub(super) fn overwrite(&self, from: &File) -> io::Result<File> {
        let file = opened::reopen(&self.file, OpenOptions::new().read(true).write(true))
            // To write takes no right to read.
            .or_else(|_| opened::reopen(&self.file, OpenOptions::new().write(true)))?;
        // What was there would show through the holes.
        file.set_len(0)?;
        copy_contents(from, &file, 0)?;
        Ok(file)
    }
}

/// `None` where the directory is missing, and to be left so.
fn find_spot(path: &Path, missing: Missing) -> io::Result<Option<Spot>> {
    match (Spot::find(path), missing) {
        (Err(error), Missing::Leave) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        (Err(error), Missing::Make) if error.kind() == io::ErrorKind::NotFound => {
            Spot::make(path, NEW_DIRECTORY_MODE).map(Some)
        }
        (found, _) => found.map(Some),
    }
}

/// What lies at `spot`, without opening it.
fn look(spot: &Spot) -> io::Result<Option<(OwnedFd, Stat)>> {
    match spot.open(OFlags::PATH, 0) {
        Err(Errno::NOENT) => Ok(None),
        opened => {
            let file = opened?;
            let found = fstat(&file)?;
            Ok(Some((file, found)))
        }
    }
}

/// Whether it is the directory that does not let its user put a file there, of which the file itself knows nothing.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::ResourceBusy)
}

/// As many as the kernel follows.
const LINKS_MAX: usize = 40;

const NEW_FILE_MODE: RawMode = 0o644;
const NEW_DIRECTORY_MODE: RawMode = 0o755;
