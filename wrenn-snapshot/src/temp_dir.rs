//! The directory of a generation that is being written.

use std::path::PathBuf;

use crate::{
    error::Result,
    id::GenerationId,
    root::{DirLock, Root},
};

/// A directory that is removed unless it is published. It is locked while it lives, so that a sweep by another opener
/// of the store, in this process or another, leaves it alone.
#[derive(Debug)]
pub(crate) struct TempDir {
    root: Root,
    pub(crate) path: PathBuf,
    /// `None` once it is published.
    lock: Option<DirLock>,
}

impl TempDir {
    pub(crate) fn create(root: Root, id: GenerationId) -> Result<Self> {
        let path = root.path.join(format!("{TEMP_PREFIX}{id}"));
        // A sweep must not come between the two.
        let _gate = root.share_gate()?;
        root.create_dir(&path)?;
        let lock = root.use_dir(&path).inspect_err(|_| {
            let _ = root.remove_dir(&path);
        })?;
        Ok(Self { root, path, lock })
    }

    /// Renames the complete directory into place; from the rename on, the generation is there. The lock that it
    /// returns has not been let go in between, and what the generation needs is locked through its parent until the
    /// gate is open again: a collection sees the one or the other.
    pub(crate) fn publish(&mut self, id: GenerationId) -> Result<Option<DirLock>> {
        let (temp, path) = (self.path.clone(), self.root.dir(id));
        let _gate = self.root.share_gate()?;
        self.root.rename(&temp, &path)?;
        // A generation that may be gone after a crash is not one.
        self.root.sync_dir(&self.root.path).inspect_err(|_| {
            if self.root.rename(&path, &temp).is_err() {
                self.path = path;
            }
        })?;
        Ok(self.lock.take())
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // The next open of the store sweeps what cannot be removed now.
            let _ = self.root.remove_dir(&self.path);
        }
    }
}

/// How a directory is called that is not, or not any more, a generation.
pub(crate) const TEMP_PREFIX: &str = "tmp-";

/// How one is called that was a generation.
pub(crate) const REMOVED_PREFIX: &str = "tmp-removed-";
