//! What a guest's next generation is a child of, and keeping that short.
//!
//! ```text
//!  Lineage::new ──▶ shorten (in the background) ──▶ a generation of the same content, of fewer files
//!                      ▲                                   │
//!                  go_on_from ◀── a capture ◀── parent ◀───┘ if it is there by then; the long one if not
//! ```
//!
//! Each pause, fork and snapshot makes a lineage one longer. So it is compacted now and then while the guest runs, and
//! the next generation becomes a child of what came of that. Nobody's record names that before a generation under it is
//! recorded: a crash leaves it to the next collection, and the record goes on naming what it named.

use std::sync::Arc;
use tokio::task::JoinHandle;
use wrenn_snapshot::{CompactPolicy, Generation, Space};

use crate::error::Result;
use crate::id::SandboxId;
use crate::site::Site;

#[derive(Debug)]
pub(crate) struct Lineage {
    parent: Generation,
    /// Whose record does not count as another's.
    own: Option<SandboxId>,
    shortening: Option<JoinHandle<Option<Generation>>>,
    leaves_garbage: bool,
}

impl Lineage {
    /// That of a guest which is equal to `parent`.
    pub(crate) fn new(parent: Generation, own: Option<SandboxId>) -> Self {
        Self { parent, own, shortening: None, leaves_garbage: false }
    }

    /// What the guest was last equal to. Waits for a compaction only where the lineage is half as long again as it should
    /// be, because the guest never ran for as long as one takes.
    pub(crate) async fn parent(&mut self) -> Generation {
        if let Some(shortening) = self.shortening.take_if(|task| task.is_finished() || is_far_too_long(&self.parent)) {
            // A failed join is a panic, which was printed.
            if let Ok(Some(shorter)) = shortening.await {
                self.parent = shorter;
                self.leaves_garbage = true;
            }
        }
        self.parent.clone()
    }

    /// Whether a compaction left generations that a collection may find to be needed no more.
    pub(crate) fn leaves_garbage(&self) -> bool {
        self.leaves_garbage
    }

    /// The guest goes on from `generation`, which has just been made of it. A compaction that is under way ends by
    /// itself, and what it made goes with the next collection.
    pub(crate) fn go_on_from(&mut self, generation: Generation) {
        self.parent = generation;
        // One that had nothing to do is finished.
        self.leaves_garbage |= self.shortening.take().is_some_and(|task| !task.is_finished());
    }

    /// Begins to compact, if it is due. Returns at once.
    pub(crate) fn shorten(&mut self, site: &Arc<Site>) {
        let (site, parent, own) = (site.clone(), self.parent.clone(), self.own.clone());
        self.shortening = Some(tokio::task::spawn_blocking(move || {
            compact(&site, &parent, own.as_ref()).unwrap_or_else(|error| {
                tracing::warn!(error = &error as &dyn std::error::Error, "a long lineage was not compacted");
                None
            })
        }));
    }
}

fn compact(site: &Arc<Site>, generation: &Generation, own: Option<&SandboxId>) -> Result<Option<Generation>> {
    let store = &site.store;
    if !store.may_be_due(generation)? {
        return Ok(None);
    }
    let Some(done) = store.compact_if_due(generation, &site.roots_of_others(own)?)? else { return Ok(None) };
    tracing::debug!(folded = done.folded.len(), copied_bytes = done.copied_bytes, "compacted a lineage");
    Ok(Some(done.generation))
}

fn is_far_too_long(generation: &Generation) -> bool {
    let generations = |space| generation.space(space).map_or(0, |stats| stats.generations);
    let longest = generations(Space::Memory).max(generations(Space::Drive));
    longest > CompactPolicy::default().generations_max * 3 / 2
}
