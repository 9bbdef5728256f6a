//! A file of the host's, and what was made of it: read anew when it has changed.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A small file, such as `/etc/resolv.conf`, that others write.
#[derive(Debug)]
pub(super) struct KeptFile<T> {
    path: PathBuf,
    kept: Mutex<Option<Kept<T>>>,
}

#[derive(Debug)]
struct Kept<T> {
    looked: Instant,
    bytes: Vec<u8>,
    made: T,
}

impl<T: Clone> KeptFile<T> {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), kept: Mutex::new(None) }
    }

    /// What `make` makes of the file as it is, or was a few seconds ago. A file that is gone or says nothing good is taken for
    /// one that is being written: then it is what it was made of last.
    ///
    /// # Errors
    /// The file cannot be read, or nothing made of it, and never could.
    pub(super) fn current(&self, make: impl FnOnce(&[u8]) -> io::Result<T>) -> io::Result<T> {
        self.at(Instant::now(), make)
    }

    fn at(&self, now: Instant, make: impl FnOnce(&[u8]) -> io::Result<T>) -> io::Result<T> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_ref().filter(|kept| now.saturating_duration_since(kept.looked) < FRESH) {
            return Ok(kept.made.clone());
        }
        // By its content: a file can change twice within the time that its stamp tells apart.
        let read = std::fs::read(&self.path);
        if let (Ok(read), Some(kept)) = (&read, &mut *kept)
            && *read == kept.bytes
        {
            kept.looked = now;
            return Ok(kept.made.clone());
        }
        match (read.and_then(|bytes| Ok((make(&bytes)?, bytes))), &mut *kept) {
            (Ok((made, bytes)), kept) => {
                *kept = Some(Kept { looked: now, bytes, made: made.clone() });
                Ok(made)
            }
            (Err(error), Some(kept)) => {
                tracing::debug!(%error, path = %self.path.display(), "what was in the file is kept");
                kept.looked = now;
                Ok(kept.made.clone())
            }
            (Err(error), None) => Err(error),
        }
    }
}

/// How old what is known of the file may be.
const FRESH: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> io::Result<String> {
        if bytes.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    #[test]
    fn a_file_that_changes_is_read_anew_and_what_was_made_of_it_is_kept_while_it_does_not() {
        let path = std::env::temp_dir().join(format!("wrenn-net-kept-{}", std::process::id()));
        std::fs::remove_file(&path).ok();
        let (file, began) = (KeptFile::new(&path), Instant::now());
        let at = |seconds: u64, make: &dyn Fn(&[u8]) -> io::Result<String>| {
            file.at(began + Duration::from_secs(seconds), make).ok()
        };
        let never = |_: &[u8]| panic!("nothing is to be made of it");
        assert_eq!(at(0, &text), None, "there is none yet");
        std::fs::write(&path, "one").expect("written");
        assert_eq!(at(0, &text).as_deref(), Some("one"), "what failed is tried again");
        assert_eq!(at(10, &never).as_deref(), Some("one"), "it is the same");
        std::fs::write(&path, "two").expect("written");
        assert_eq!(at(14, &never).as_deref(), Some("one"), "it was looked at lately");
        assert_eq!(at(15, &text).as_deref(), Some("two"));
        std::fs::write(&path, "").expect("written");
        assert_eq!(at(20, &text).as_deref(), Some("two"), "it is being written");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(at(25, &text).as_deref(), Some("two"), "it is being replaced");
        std::fs::write(&path, "three").expect("written");
        assert_eq!(at(30, &text).as_deref(), Some("three"));
        std::fs::remove_file(&path).expect("removed");
    }
}
