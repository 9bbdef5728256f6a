use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::rand::{GetRandomFlags, getrandom};

use super::cleanup;
use crate::agent::console::complain;

/// What an upload does to the name that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Upload {
    New,
    Replacement,
}

/// What the upload does that is being written to a file called `name`; `None` for every other file.
pub(in crate::agent) fn upload_of(name: &OsStr) -> Option<Upload> {
    let name = name.to_str()?;
    let starts = |prefix: &str| name.starts_with(prefix);
    if starts(NEW_PREFIX) { Some(Upload::New) } else { starts(REPLACEMENT_PREFIX).then_some(Upload::Replacement) }
}

/// A file that goes unless it is kept: an upload that breaks off, or whose client leaves, leaves nothing.
///
/// It goes a little later, on a thread that may wait: a file system that stands still makes nobody else wait.
#[derive(Debug)]
pub(in crate::agent) struct Temporary {
    path: PathBuf,
    is_kept: bool,
}

impl Temporary {
    /// A new file in `directory`, of a name that nobody can foresee, for its owner alone.
    pub(in crate::agent) fn create(directory: &Path, upload: Upload) -> io::Result<(File, Self)> {
        let path = directory.join(random_name(prefix(upload))?);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok((file, Self { path, is_kept: false }))
    }

    /// A name beside `path` that nobody can foresee, for a file that is still to be made.
    pub(in crate::agent) fn beside(path: &Path, upload: Upload) -> io::Result<Self> {
        Ok(Self { path: path.with_file_name(random_name(prefix(upload))?), is_kept: false })
    }

    pub(in crate::agent) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, on a thread that may wait itself.
    pub(in crate::agent) fn remove(mut self) -> io::Result<()> {
        self.is_kept = true;
        fs::remove_file(&self.path)
    }

    pub(in crate::agent) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_kept {
            let path = std::mem::take(&mut self.path);
            cleanup::hand_over(move || match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    complain(&format!("remove what an upload left, {}: {error}", path.display()));
                }
                _ => {}
            });
        }
    }
}

fn prefix(upload: Upload) -> &'static str {
    match upload {
        Upload::New => NEW_PREFIX,
        Upload::Replacement => REPLACEMENT_PREFIX,
    }
}

/// A name that nobody can foresee, and thus nobody has taken.
pub(in crate::agent) fn random_name(prefix: &str) -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    // It never waits, and never gives less than is asked for when that is so little.
    getrandom(&mut bytes, GetRandomFlags::INSECURE)?;
    Ok(format!("{prefix}{:032x}", u128::from_le_bytes(bytes)))
}

const NEW_PREFIX: &str = ".wrenn-upload-new-";
const REPLACEMENT_PREFIX: &str = ".wrenn-upload-replacement-";
