//! What an image or a kernel is made in, before it has its name.

use std::path::PathBuf;

use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::image::error::ImageError;
use crate::image::scratch;
use crate::image::store::Store;

/// The directory of a build, and the lock of what is built. Removing it can take seconds, so nobody's asynchronous work does
/// it; the lock is held until it is done, since the next build removes what it finds.
pub(super) struct Staged(Option<(TempDir, Store)>);

impl Staged {
    pub(super) fn new(directory: TempDir, store: Store) -> Self {
        Self(Some((directory, store)))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.0.as_ref().map(|(directory, _)| directory.path().to_owned()).unwrap_or_default()
    }

    /// Gives it its name. What it replaces stays under its digest if `keep` has one. Blocks.
    pub(super) fn publish(mut self, keep: Option<&str>) -> Result<(), ImageError> {
        self.0.take().map_or(Ok(()), |(directory, store)| store.publish(directory, keep))
    }

    /// Removes it, and waits for that.
    pub(super) async fn remove(mut self) {
        if let Some(staged) = self.0.take() {
            // An error is a panic of the removal: there is nothing to do, and the next build tries it again.
            spawn_blocking(move || discard(staged)).await.ok();
        }
    }
}

impl Drop for Staged {
    /// For a build whose future was dropped.
    fn drop(&mut self) {
        let staged = self.0.take();
        if let (Some(staged), Ok(runtime)) = (staged, Handle::try_current()) {
            runtime.spawn_blocking(move || discard(staged));
        }
    }
}

/// Removes what was staged, under the lock.
fn discard((directory, lock): (TempDir, Store)) {
    let path = directory.keep();
    if let Err(error) = scratch::remove(&path) {
        tracing::warn!(path = %path.display(), %error, "what a build has left is still there; the next one tries again");
    }
    drop(lock);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::image::name::Name;
    use crate::image::step::Step;
    use crate::image::store;

    /// The one blocking thread is busy, so whatever is removed meanwhile was removed by the thread that gave it up.
    #[test]
    fn a_build_that_is_given_up_is_removed_by_a_blocking_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let (data, name) = (tempfile::tempdir().unwrap(), Name::parse("base").unwrap());
        let (go_on, held) = mpsc::channel::<()>();
        let path = runtime.block_on(async {
            let store = Store::lock(store::images(data.path()), &name, &mut |_: &Step| {}).await.unwrap();
            let staged = Staged::new(store.stage().unwrap(), store);
            spawn_blocking(move || held.recv());
            let path = staged.path();
            drop(staged);
            assert!(path.exists(), "it is removed where it was dropped");
            path
        });
        drop(go_on);
        // It waits for the blocking threads.
        drop(runtime);
        assert!(!path.exists());
    }
}
