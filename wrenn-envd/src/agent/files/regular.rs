use std::{ffi::OsStr, fs::File, os::fd::AsFd, path::Path};

use rustix::fs::OFlags;

use crate::agent::{api_error::ApiError, disk::opened};

/// Opens `name`, which a message calls `path`; anything but a regular file is refused, since it may never end.
pub(super) fn open_regular(directory: impl AsFd, name: &OsStr, path: &Path) -> Result<File, ApiError> {
    let opened = opened::regular(directory, name, OFlags::empty());
    let opened = opened.map_err(|error| ApiError::from_io(&path.display().to_string(), &error))?;
    opened.ok_or_else(|| ApiError::bad_request(format!("{} is no regular file", path.display())))
}
