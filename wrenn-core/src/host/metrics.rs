//! How many sandboxes, templates and generations a host has, and how much disk they take.

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

/// How many sandboxes, templates and generations a host has, and how much disk they take, at one moment.
///
/// ```
/// use wrenn_core::HostMetrics;
///
/// let json = serde_json::to_value(HostMetrics::default())?;
/// assert_eq!((&json["running"], &json["stored_bytes"]), (&0.into(), &0.into()));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HostMetrics {
    /// Sandboxes that run in this program, and those that another program runs and that were paused before.
    pub running: u64,
    /// Sandboxes that are paused.
    pub paused: u64,
    /// Templates that [`Sandbox::create`](crate::Sandbox::create) takes: images, and snapshots with a name.
    pub templates: u64,
    /// Boots of images that are kept, one for each machine shape that was used lately.
    pub booted_templates: u64,
    /// Generations in the store. Those that the next collection of garbage removes are counted too.
    pub generations: u64,
    /// How much the generations take on disk, in bytes.
    pub stored_bytes: u64,
    /// How much this user can still write to the data directory's file system, in bytes.
    pub free_bytes: u64,
    /// VMMs that [stand by](crate::HostBuilder::standbys).
    pub standbys: u64,
    /// Collections of garbage that this host has done since it was opened.
    pub collections: u64,
    /// Records that cannot be read: [`Host::damaged_records`] names them.
    pub damaged_records: u64,
}

impl Host {
    /// Counts the host's sandboxes, templates and generations, and how much disk they take. The call looks at each
    /// record and each stored file once: a thousand of them take some 10 ms.
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
    /// Cancelling changes nothing.
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
        standbys: count(site.standbys.ready()),
        collections: site.collections(),
        damaged_records: count(site.survey()?.damaged_count()),
        ..HostMetrics::default()
    })
}

/// How much the files of one generation take on disk; zero for a generation that is deleted at the same time.
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
