use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read as _},
    os::fd::AsFd,
    path::Path,
};

use rustix::fs::{CWD, OFlags};

use crate::agent::{api_error::ApiError, disk::opened};

/// A file that is to be sent.
#[derive(Debug)]
pub(super) enum Contents {
    /// All of it: it is short.
    Whole(Vec<u8>),
    /// A file of so many bytes.
    Sized(File, u64),
    /// What was read of a file that does not say how long it is, and the file: one of the kernel's.
    Unsized(Vec<u8>, File),
}

impl Contents {
    /// Reads the beginning of the regular file at `path`, and finds out how long it is: the kernel's own files say that they
    /// hold nothing, or a page, whatever they hold.
    pub(super) fn open(path: &Path) -> Result<Self, ApiError> {
        let failed = |error: io::Error| ApiError::from_io(&path.display().to_string(), &error);
        let file = open_regular(CWD, path.as_os_str(), path)?;
        let length = file.metadata().map_err(failed)?.len();
        if length > HEAD_BYTES {
            return Ok(Self::Sized(file, length));
        }
        let mut head = Vec::new();
        (&file).take(HEAD_BYTES + 1).read_to_end(&mut head).map_err(failed)?;
        let read = head.len() as u64;
        if read <= HEAD_BYTES {
            return Ok(Self::Whole(head));
        }
        // One that has grown meanwhile is as long as it is now: somebody may add to it faster than it can be sent.
        let length = file.metadata().map_err(failed)?.len();
        Ok(if length >= read { Self::Sized(file, length) } else { Self::Unsized(head, file) })
    }
}

/// Opens `name`, which a message calls `path`; anything but a regular file is refused, since it may never end.
pub(super) fn open_regular(directory: impl AsFd, name: &OsStr, path: &Path) -> Result<File, ApiError> {
    let opened = opened::regular(directory, name, OFlags::empty());
    let opened = opened.map_err(|error| ApiError::from_io(&path.display().to_string(), &error))?;
    opened.ok_or_else(|| ApiError::bad_request(format!("{} is no regular file", path.display())))
}

/// As much as is read before the answer begins.
const HEAD_BYTES: u64 = 64 << 10;
