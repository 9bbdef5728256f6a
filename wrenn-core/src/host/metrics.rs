//! How much a host has and keeps.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::host::filter::SandboxFilter;
use crate::host::handle::Host;
use crate::runtime::blocking;
use crate::sandbox::template::Template;
use crate::site::{Site, record};
use crate::state::SandboxState;

/// What [`Host::metrics`] counts, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HostMetrics {
    /// Sandboxes that run, here or in another program.
    pub running: u64,
    /// Sandboxes that are on disk alone.
    pub paused: u64,
    /// Templates that a create takes: images, and snapshots with a name.
    pub templates: u64,
    /// Boots of images that are kept, one for each machine shape that was used lately.
    pub booted_templates: u64,
    /// Generations in the store, also those that the next collection removes.
    pub generations: u64,
    /// What the generations take on disk, in bytes.
    pub stored_bytes: u64,
    /// What is left to this user on the data directory's file system, in bytes.
    pub free_bytes: u64,
    /// Collections of garbage that this host has done since it was opened.
    pub collections: u64,
    /// Records that cannot be read: [`Host::damaged_records`] names them.
    pub damaged_records: u64,
}

impl Host {
    /// Counts what the host has and keeps. It looks at each record and each stored file once: some 10 ms for a thousand of
    /// them.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// let metrics = host.metrics().await?;
    /// println!("{} of {} sandboxes run", metrics.running, metrics.running + metrics.paused);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Failed`] where the data directory cannot be read.
    ///
    /// # Cancel-Safety
    /// It changes nothing.
    pub async fn metrics(&self) -> Result<HostMetrics> {
        let sandboxes = self.sandboxes(&SandboxFilter::new()).await?;
        let paused = sandboxes.iter().filter(|info| info.state == SandboxState::Paused).count();
        let site = self.0.site.clone();
        let stored = blocking("count what is stored", move || of_site(&site)).await??;
        Ok(HostMetrics { running: count(sandboxes.len() - paused), paused: count(paused), ..stored })
    }
}

fn of_site(site: &Site) -> Result<HostMetrics> {
    let generations = site.store.list()?;
    let mut stored_bytes = 0;
    for id in &generations {
        stored_bytes += allocated_bytes(&site.store.root().join(id.to_string()))?;
    }
    let data = site.data.path();
    let space = statvfs(data).map_err(|errno| Error::io("measure", data)(errno.into()))?;
    Ok(HostMetrics {
        templates: count(Template::all(site)?.len()),
        booted_templates: count(record::stems(&site.data.booted())?.len()),
        generations: count(generations.len()),
        stored_bytes,
        free_bytes: space.blocks_available() * space.fragment_size(),
        collections: site.collections(),
        damaged_records: count(site.survey()?.damaged_count()),
        ..HostMetrics::default()
    })
}

/// Of the files of one generation; nothing for one that is collected meanwhile.
fn allocated_bytes(directory: &Path) -> Result<u64> {
    let sum = || {
        let blocks = fs::read_dir(directory)?.map(|entry| Ok(entry?.metadata()?.blocks()));
        blocks.sum::<io::Result<u64>>()
    };
    match sum() {
        Ok(blocks) => Ok(blocks * 512),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("measure", directory)(error)),
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
