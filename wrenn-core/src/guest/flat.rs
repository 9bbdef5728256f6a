//! A generation's memory as one file, which all of its clones map.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wrenn_snapshot::{Generation, Space};

use crate::error::{Error, Result};
use crate::runtime::blocking;
use crate::site::Site;

/// Opens the file, and makes it first where it is not there. One caller makes it, and the callers of all programs wait
/// until it is there. The file lies in the directory of its generation, and is removed with it.
///
/// The checksum of each page is verified once, when the file is made.
///
/// # Cancel-Safety
/// Cancelling does not stop the making of the file, which the next caller finds.
pub(crate) async fn memory(site: &Arc<Site>, generation: &Generation) -> Result<File> {
    let path = site.store.root().join(generation.id().to_string()).join(NAME);
    let deadline = Instant::now() + PATIENCE;
    // Callers wait without a thread each, since there may be more of them than threads.
    loop {
        let (generation, path) = (generation.clone(), path.clone());
        let made = blocking("write the memory of all clones", move || open_or_make(&generation, path)).await??;
        if let Some(file) = made {
            return Ok(file);
        }
        if Instant::now() >= deadline {
            let text = format!("somebody else has been writing it for {} s", PATIENCE.as_secs());
            return Err(Error::failed("write the memory of all clones")(text.into()));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The file; `None` while another caller makes it.
fn open_or_make(generation: &Generation, path: PathBuf) -> Result<Option<File>> {
    let write = |file: &File| {
        generation.reader(Space::Memory)?.copy_into(file, &path)?;
        // The VMM runs as another user, and maps the file privately.
        let readable = file.set_permissions(Permissions::from_mode(0o444));
        readable.map_err(wrenn_snapshot::Error::of_source)
    };
    match generation.sidecar(NAME)?.make(Duration::ZERO, write) {
        Ok(file) => Ok(Some(file)),
        Err(wrenn_snapshot::Error::Io { source, .. }) if source.kind() == io::ErrorKind::TimedOut => Ok(None),
        Err(error) => Err(error.into()),
    }
}

const NAME: &str = "flat-memory";
/// The largest memory is 64 GiB, which a disk of 100 MB/s takes eleven minutes to write.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
const POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use wrenn_snapshot::{LocalStore, PAGE_BYTES, PageRange};

    use super::*;

    #[test]
    fn one_makes_the_file_and_others_wait_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        let mut pending = store.begin(None).unwrap();
        pending.write_dirty(Space::Memory, &[7; PAGE_BYTES], &[PageRange::new(0, 1)]).unwrap();
        let generation = pending.publish(b"").unwrap();
        let path = store.root().join(generation.id().to_string()).join(NAME);
        let made = || open_or_make(&generation, path.clone()).unwrap();

        // Somebody else makes it.
        let part = File::create(path.with_file_name(format!("{NAME}.part"))).unwrap();
        part.lock().unwrap();
        assert!(made().is_none() && !path.exists(), "a second maker");
        drop(part);
        let first = made().unwrap().metadata().unwrap();
        let second = made().unwrap().metadata().unwrap();
        assert_eq!((first.ino(), first.len()), (second.ino(), PAGE_BYTES as u64));
        assert_eq!(first.mode() & 0o777, 0o444);
        assert_eq!(std::fs::read(&path).unwrap(), [7; PAGE_BYTES]);
    }
}
