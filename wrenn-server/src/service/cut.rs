//! How far the output of each process was sent whose stream the server's end has cut, so that a client which does not count goes
//! on where it was.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use wrenn_core::SandboxId;

/// The streams that were cut, each until it is taken up again.
#[derive(Debug)]
pub struct Cut {
    path: PathBuf,
    offsets: Mutex<HashMap<String, u64>>,
}

impl Cut {
    /// What an earlier server has left in a file. It holds once.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        let left = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        // Were it kept, it would be wrong after a kill.
        if let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "it would mislead the next server: remove it");
        }
        Self { path: path.to_owned(), offsets: Mutex::new(left.unwrap_or_default()) }
    }

    /// Notes that so much of a process's output was sent.
    pub fn note(&self, id: &SandboxId, pid: u32, offset: u64) {
        self.lock().insert(name(id, pid), offset);
    }

    /// How much of a process's output was sent, for the first one who asks.
    #[must_use]
    pub fn take(&self, id: &SandboxId, pid: u32) -> Option<u64> {
        self.lock().remove(&name(id, pid))
    }

    /// Leaves them for the next server.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self) -> io::Result<()> {
        let offsets = self.lock().clone();
        if offsets.is_empty() {
            return Ok(());
        }
        std::fs::write(&self.path, serde_json::to_vec(&offsets)?)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(id: &SandboxId, pid: u32) -> String {
    format!("{id}/{pid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_is_taken_up_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cut.json");
        let id: SandboxId = "sb00f00ba70000002a".parse().expect("an id");
        let cut = Cut::open(&path);
        cut.note(&id, 7, 100);
        cut.note(&id, 7, 120);
        cut.save().expect("saved");
        let next = Cut::open(&path);
        assert_eq!((next.take(&id, 8), next.take(&id, 7), next.take(&id, 7)), (None, Some(120), None));
        next.save().expect("nothing to save");
        assert_eq!(Cut::open(&path).take(&id, 7), None);
        std::fs::write(&path, "rubbish").expect("written");
        assert_eq!(Cut::open(&path).take(&id, 7), None);
    }
}
