//! Removing what was left half-way.

use crate::{
    error::Result,
    root::{DirLock, Root},
    temp_dir::TEMP_PREFIX,
};

/// Removes the `tmp-` directories that nobody locks. `gate` is closed: a directory that is there has been locked by
/// who made it, unless it was left behind, and whoever makes one from now on gives it another name.
///
/// One that cannot be removed keeps none of the others; the first error is returned.
pub(crate) fn sweep(root: &Root, gate: DirLock) -> Result<()> {
    let names = root.list(&root.path)?;
    drop(gate);
    let left = names.iter().filter(|name| name.starts_with(TEMP_PREFIX));
    left.map(|name| remove_unused(root, name)).fold(Ok(()), Result::and)
}

fn remove_unused(root: &Root, name: &str) -> Result<()> {
    let path = root.path.join(name);
    // Held while it is removed, so that another sweep passes it by.
    match root.lock_unused(&path)? {
        Some(_lock) => root.remove_dir(&path),
        None => Ok(()),
    }
}
