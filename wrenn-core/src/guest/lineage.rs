//! The parent of a guest's next generation, and the compaction that keeps the chain of its ancestors short.
//!
//! ```text
//!  Lineage::new ──▶ shorten (in the background) ──▶ a generation of the same content, of fewer files
//!                      ▲                                   │
//!                  go_on_from ◀── a capture ◀── parent ◀───┘ if it is there by then; the long one if not
//! ```
//!
//! Each pause, fork and snapshot makes the chain one generation longer. So the chain is compacted now and then while
//! the guest runs, and the next generation becomes a child of the compacted one. No record names the compacted
//! generation before its child is recorded. After a crash, the record still names the old generation, and the next
//! collection removes the compacted one.

use std::sync::Arc;
use tokio::task::JoinHandle;
use wrenn_snapshot::{CompactPolicy, Generation, Space};

use crate::error::Result;
use crate::id::SandboxId;
use crate::site::Site;

#[derive(Debug)]
pub(crate) struct Lineage {
    parent: Generation,
    /// The sandbox that the guest belongs to. Its own record does not keep a compaction from removing generations.
    own: Option<SandboxId>,
    shortening: Option<JoinHandle<Option<Generation>>>,
    leaves_garbage: bool,
}

impl Lineage {
    /// The lineage of a guest whose memory and drive are equal to `parent`.
    pub(crate) fn new(parent: Generation, own: Option<SandboxId>) -> Self {
        Self { parent, own, shortening: None, leaves_garbage: false }
    }

    /// The generation that the guest was last equal to. It waits for a compaction only where the chain is half as long
    /// again as it should be, since the guest never ran for as long as a compaction takes.
    pub(crate) async fn parent(&mut self) -> Generation {
        if let Some(shortening) = self.shortening.take_if(|task| task.is_finished() || is_far_too_long(&self.parent)) {
            // A join fails only where the task panicked, and the panic was printed.
            if let Ok(Some(shorter)) = shortening.await {
                self.parent = shorter;
                self.leaves_garbage = true;
            }
        }
        self.parent.clone()
    }

    /// Whether a compaction left generations that may be no longer needed.
    pub(crate) fn leaves_garbage(&self) -> bool {
        self.leaves_garbage
    }

    /// Notes that `generation` has just been made of the guest. A compaction that is under way ends by itself, and the
    /// next collection removes its result.
    pub(crate) fn go_on_from(&mut self, generation: Generation) {
        self.parent = generation;
        // A compaction that had nothing to do is finished already, and made nothing.
        self.leaves_garbage |= self.shortening.take().is_some_and(|task| !task.is_finished());
    }

    /// Begins a compaction in the background, if one is due.
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
