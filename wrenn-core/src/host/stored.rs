//! How much disk is kept for some sandboxes and snapshots.

use wrenn_snapshot::GenerationId;

use crate::error::Result;
use crate::host::handle::Host;
use crate::id::{SandboxId, TemplateName};
use crate::runtime::blocking;
use crate::site::records::{PausedRecord, TemplateRecord};
use crate::site::{Site, record};

impl Host {
    /// How much disk is kept for these sandboxes and snapshots, in bytes: for the last pause or checkpoint of each sandbox and
    /// for each snapshot, with what they share with others, each counted once. The boots of images, which every sandbox
    /// begins with, are not counted. One that has nothing on disk, or whose record is damaged, counts for nothing. The call reads
    /// some small files for each.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// let bytes = host.stored_bytes(&[], &["warm-python".parse()?]).await?;
    /// println!("the snapshot takes {} MiB", bytes >> 20);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Failed`](crate::Error::Failed) where the data directory cannot be read.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn stored_bytes(&self, sandboxes: &[SandboxId], snapshots: &[TemplateName]) -> Result<u64> {
        let (site, sandboxes, snapshots) = (self.0.site.clone(), sandboxes.to_vec(), snapshots.to_vec());
        let count = move || {
            let paused = sandboxes.iter().filter_map(|id| generation_of_pause(&site, id));
            let named = snapshots.iter().filter_map(|name| generation_of_template(&site.data.template(name)));
            let ids: Vec<GenerationId> = paused.chain(named).collect();
            Ok(site.store.reached_bytes(&ids, &boots(&site)?)?)
        };
        blocking("count what is stored", count).await?
    }
}

/// The generations of booted images.
fn boots(site: &Site) -> Result<Vec<GenerationId>> {
    let booted = site.data.booted();
    let stems = record::stems(&booted)?;
    Ok(stems.iter().filter_map(|stem| generation_of_template(&booted.join(format!("{stem}.json")))).collect())
}

fn generation_of_pause(site: &Site, id: &SandboxId) -> Option<GenerationId> {
    let record = record::read::<PausedRecord>(&site.data.sandbox(id)).ok().flatten();
    record.map(|record| record.generation)
}

fn generation_of_template(path: &std::path::Path) -> Option<GenerationId> {
    let record = record::read::<TemplateRecord>(path).ok().flatten();
    record.map(|record| record.generation)
}
