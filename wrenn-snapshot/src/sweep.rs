//! Removing what was left half-way.

use crate::{
    error::Result,
    root::{DirLock, Root},
    temp_dir::{REMOVED_PREFIX, TEMP_PREFIX},
};

/// Removes the `tmp-` directories that nobody locks. `gate` is closed: a directory that is there has been locked by
/// who made it, unless it was left behind, and whoever makes one from now on gives it another name.
///
/// The names under which they are found are durable before anything in them goes. Else a power cut could bring a
/// generation back that somebody has renamed, without its files.
///
/// One that cannot be removed keeps none of the others; the first error is returned.
pub(crate) fn sweep(root: &Root, gate: DirLock) -> Result<()> {
    let mut names = root.list(&root.path)?;
    drop(gate);
    names.retain(|name| name.starts_with(TEMP_PREFIX));
    if names.iter().any(|name| name.starts_with(REMOVED_PREFIX)) {
        root.sync_dir(&root.path)?;
    }
    names.iter().map(|name| remove_unused(root, name)).fold(Ok(()), Result::and)
}

fn remove_unused(root: &Root, name: &str) -> Result<()> {
    let path = root.path.join(name);
    // Held while it is removed, so that another sweep passes it by.
    match root.lock_unused(&path)? {
        Some(_lock) => root.remove_dir(&path),
        None => Ok(()),
    }
}
