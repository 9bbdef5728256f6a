//! The steps that were done before: their records, their locks, and which of them are kept.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use wrenn_snapshot::Generation;

use crate::error::Result;
use crate::guest::manifest::Manifest;
use crate::host::handle::Host;
use crate::runtime::blocking;
use crate::sandbox::boots::note_use;
use crate::site::lock::FileLock;
use crate::site::records::StepRecord;
use crate::site::{Site, record};

/// Finds what a step has left, and notes its use. `None`, and a warning in the log, where that cannot be used.
pub(super) async fn find(site: &Arc<Site>, key: &str) -> Result<Option<(StepRecord, Generation)>> {
    let (site, key) = (Arc::clone(site), key.to_owned());
    let find = move || {
        let path = site.data.step(&key);
        let loaded = record::read::<StepRecord>(&path).and_then(|record| match record {
            Some(record) => {
                let generation = site.store.load(record.generation)?;
                Ok(Some((record, generation)))
            }
            None => Ok(None),
        });
        match loaded {
            Ok(Some(found)) => {
                note_use(&path);
                Some(found)
            }
            Ok(None) => None,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, step = key, "what the step has left is unusable; doing it anew");
                None
            }
        }
    };
    blocking("find the step", find).await
}

/// Takes a step's lock if no build has it.
pub(super) async fn try_lock(site: &Arc<Site>, key: &str) -> Result<Option<FileLock>> {
    let (data, name) = (site.data.clone(), lock_of(key));
    blocking("wait for another build of this step", move || data.try_lock(&name)).await?
}

/// Records what a step has left.
pub(super) async fn keep(
    site: &Arc<Site>,
    key: &str,
    record: StepRecord,
    generation: Generation,
) -> Result<(StepRecord, Generation)> {
    let (site, path) = (Arc::clone(site), site.data.step(key));
    blocking("record the step", move || {
        site.keep(&path, &record)?;
        Ok((record, generation))
    })
    .await?
}

impl Host {
    /// Forgets steps of builds that were not used for the time `unused`, and of the others all but the `most` that were used
    /// last. What they have stored is deleted in the background, except what a template, a sandbox or a step that is kept
    /// depends on. Returns how many were forgotten. A build that needs one of them does it anew.
    ///
    /// A build forgets by itself all but the 200 steps that were used last.
    ///
    /// ```no_run
    /// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use std::time::Duration;
    ///
    /// let forgotten = host.prune_steps(Duration::from_secs(14 * 24 * 3600), 100).await?;
    /// println!("{forgotten} steps were forgotten");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Failed`](crate::Error::Failed) where the records cannot be listed or removed.
    ///
    /// # Cancel-Safety
    /// Cancelling does not stop what has begun.
    pub async fn prune_steps(&self, unused: Duration, most: usize) -> Result<usize> {
        prune(&self.0.site, unused, most).await
    }
}

/// Forgets what a build has no room for.
pub(super) async fn bound(site: &Arc<Site>) -> Result<usize> {
    prune(site, Duration::MAX, STEPS_MAX).await
}

async fn prune(site: &Arc<Site>, unused: Duration, most: usize) -> Result<usize> {
    let here = Arc::clone(site);
    let forgotten = blocking("forget steps", move || forget(&here, unused, most)).await??;
    if forgotten > 0 {
        site.tidy();
    }
    Ok(forgotten)
}

/// Forgets the steps of builds that began with one of these images, as far as they were not used for the time `unused`. Blocks.
pub(super) fn forget_steps_on(site: &Site, images: &BTreeSet<String>, unused: Duration) -> Result<()> {
    for (used, key) in steps(site)? {
        if !is_old(used, unused) {
            continue;
        }
        let record = record::read::<StepRecord>(&site.data.step(&key)).ok().flatten();
        let generation = record.and_then(|record| site.store.load(record.generation).ok());
        let manifest = generation.and_then(|generation| Manifest::of(&generation).ok());
        // What cannot be read may be of another image, and is found to be unusable by the next build that wants it.
        if manifest.is_some_and(|manifest| images.contains(&manifest.image)) {
            forget_one(site, &key)?;
        }
    }
    Ok(())
}

/// All steps, and when each was used last. Those that were used last come first.
fn steps(site: &Site) -> Result<Vec<(SystemTime, String)>> {
    let mut steps: Vec<(SystemTime, String)> = Vec::new();
    for key in record::stems(&site.data.steps())? {
        let used = site.data.step(&key).metadata().and_then(|metadata| metadata.modified());
        steps.push((used.unwrap_or(SystemTime::UNIX_EPOCH), key));
    }
    steps.sort_by(|a, b| b.cmp(a));
    Ok(steps)
}

fn is_old(used: SystemTime, unused: Duration) -> bool {
    used.elapsed().is_ok_and(|age| age >= unused)
}

/// Whether there was such a step, and no build is at it.
fn forget_one(site: &Site, key: &str) -> Result<bool> {
    // A step that a build is at is used.
    let Some(lock) = site.data.try_lock(&lock_of(key))? else { return Ok(false) };
    let forgotten = record::remove(&site.data.step(key))?;
    site.data.forget_lock(&lock_of(key));
    drop(lock);
    Ok(forgotten)
}

/// Blocks.
fn forget(site: &Site, unused: Duration, most: usize) -> Result<usize> {
    let mut forgotten = 0;
    for (number, (used, key)) in steps(site)?.iter().enumerate() {
        if number >= most || is_old(*used, unused) {
            forgotten += usize::from(forget_one(site, key)?);
        }
    }
    Ok(forgotten)
}

fn lock_of(key: &str) -> String {
    format!("step-{key}")
}

/// A step has some 10 MB, and what it writes.
const STEPS_MAX: usize = 200;
