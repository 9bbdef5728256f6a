//! Generations that nothing depends on any more, and the records that keep the others.

use std::path::Path;

use wrenn_snapshot::GenerationId;

use crate::error::Result;
use crate::id::SandboxId;
use crate::site::records::{PausedRecord, TemplateRecord};
use crate::site::{Site, record};

impl Site {
    /// Deletes the generations that no template and no sandbox, running or paused, depends on. Every operation that may
    /// leave some calls it; blocks for as long as deleting takes.
    ///
    /// # Errors
    /// [`Error::Failed`] where a record cannot be read, [`Error::Corrupt`] where what it names is damaged: then nothing
    /// is deleted.
    pub(crate) fn collect_garbage(&self) -> Result<()> {
        // One collector at a time, and no record is written between the listing and the deleting: see `keep`.
        let _collecting = self.data.lock(COLLECT_LOCK)?;
        let removed = self.store.collect(&self.roots_of_others(None)?)?;
        if !removed.is_empty() {
            tracing::debug!(count = removed.len(), "collected generations");
        }
        Ok(())
    }

    /// Writes a record that keeps a generation, which the caller has in hand until this returns. A collection that began
    /// before has then seen that it is in hand, and one that begins later sees the record. Blocks.
    pub(crate) fn keep(&self, path: &Path, record: &impl serde::Serialize) -> Result<()> {
        let _no_collection = self.data.lock(COLLECT_LOCK)?;
        record::write(path, record)
    }

    /// Collects garbage where nobody asked for it: what is left is left for the next time.
    pub(crate) fn tidy(&self) {
        if let Err(error) = self.collect_garbage() {
            tracing::warn!(error = &error as &dyn std::error::Error, "garbage is left for the next collection");
        }
    }

    /// The generations that records name, but for the record of one sandbox.
    pub(crate) fn roots_of_others(&self, own: Option<&SandboxId>) -> Result<Vec<GenerationId>> {
        let data = &self.data;
        let mut roots = Vec::new();
        for stem in record::stems(&data.sandboxes())? {
            let id: SandboxId = stem.parse()?;
            if Some(&id) == own {
                continue;
            }
            if let Some(record) = record::read::<PausedRecord>(&data.sandbox(&id))? {
                roots.push(record.generation);
            }
        }
        for directory in [data.templates(), data.booted()] {
            for stem in record::stems(&directory)? {
                if let Some(record) = record::read::<TemplateRecord>(&directory.join(format!("{stem}.json")))? {
                    roots.push(record.generation);
                }
            }
        }
        Ok(roots)
    }
}

const COLLECT_LOCK: &str = "collect";
