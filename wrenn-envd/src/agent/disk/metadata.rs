//! What clients keep with a file: extended attributes called `user.e2b.KEY`.

use std::{collections::BTreeMap, ffi::CStr, os::fd::AsFd, path::Path};

use rustix::{
    fs::{XattrFlags, fremovexattr, fsetxattr, getxattr, getxattr_query, listxattr, listxattr_query},
    io::{Errno, Result},
};

use super::opened::path_of;

/// The metadata of the file that `path` leads to, as far as it is no longer than a client can write it. A file system without
/// extended attributes has none.
pub(in crate::agent) fn read(path: &Path) -> BTreeMap<String, String> {
    let Ok(names) = list(path) else { return BTreeMap::new() };
    let keys = names.iter().filter_map(|name| name.strip_prefix(PREFIX));
    let mut room = BYTES_MAX;
    let entries = keys.filter_map(|key| Some((key.to_owned(), get(path, key).ok()?)));
    entries.take_while(|(key, value)| take(&mut room, key.len() + value.len())).collect()
}

/// Keeps `metadata` with an open file.
pub(in crate::agent) fn write(file: impl AsFd, metadata: &BTreeMap<String, String>) -> Result<()> {
    metadata.iter().try_for_each(|(key, value)| {
        fsetxattr(file.as_fd(), format!("{PREFIX}{key}"), value.as_bytes(), XattrFlags::empty())
    })
}

/// Keeps `metadata` with an open file, and none that it had before.
pub(in crate::agent) fn replace(file: impl AsFd, metadata: &BTreeMap<String, String>) -> Result<()> {
    for key in read(&path_of(&file)).keys().filter(|key| !metadata.contains_key(*key)) {
        fremovexattr(file.as_fd(), format!("{PREFIX}{key}"))?;
    }
    write(file, metadata)
}

fn take(room: &mut usize, bytes: usize) -> bool {
    room.checked_sub(bytes).is_some_and(|left| {
        *room = left;
        true
    })
}

fn list(path: &Path) -> Result<Vec<String>> {
    let mut buffer = vec![0; listxattr_query(path)?];
    let length = listxattr(path, &mut buffer)?;
    let names = buffer[..length].split_inclusive(|byte| *byte == 0);
    Ok(names.filter_map(|name| Some(CStr::from_bytes_with_nul(name).ok()?.to_str().ok()?.to_owned())).collect())
}

fn get(path: &Path, key: &str) -> Result<String> {
    let name = format!("{PREFIX}{key}");
    let mut buffer = vec![0; getxattr_query(path, &name)?];
    let length = getxattr(path, &name, &mut buffer)?;
    buffer.truncate(length);
    String::from_utf8(buffer).map_err(|_| Errno::ILSEQ)
}

const PREFIX: &str = "user.e2b.";

/// As much as the head of an upload holds.
const BYTES_MAX: usize = 128 << 10;
