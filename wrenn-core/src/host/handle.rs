//! The door to everything: a machine that runs sandboxes.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result, Subject};
use crate::host::filter::SandboxFilter;
use crate::id::{SandboxId, TemplateName};
use crate::runtime::blocking;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::paused::PausedSandbox;
use crate::sandbox::registry::Registry;
use crate::sandbox::template::Template;
use crate::site::records::PausedRecord;
use crate::site::survey::DamagedRecord;
use crate::site::{Site, record};
use crate::state::{SandboxInfo, SandboxState};
use crate::vmm::probe::Probe;

/// The door to everything: opens a data directory and finds a VMM. Clones are the same host.
///
/// Several programs may open one data directory at once: whatever one of them runs is locked against the others, and
/// what one pauses any of them can resume.
///
/// ```no_run
/// # async fn demo() -> wrenn_core::Result<()> {
/// let host = wrenn_core::Host::open("/var/lib/wrenn").await?;
/// for template in host.templates().await? {
///     println!("{}", template.name());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Host(pub(crate) Arc<Registry>);

impl Host {
    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.0.site.data.path()
    }

    /// What was found of this machine, and what was chosen.
    #[must_use]
    pub fn probe(&self) -> &Probe {
        &self.0.site.probe
    }

    /// The driver and its version, for instance `qemu 7.2.22`.
    #[must_use]
    pub fn vmm_version(&self) -> &str {
        self.0.site.vmm.version()
    }

    /// The sandboxes that `filter` admits, of those that this program runs, that are paused, and that other programs run
    /// after a pause. Sorted by id.
    ///
    /// A record that cannot be read is passed over: [`damaged_records`](Self::damaged_records) names it. Listing locks
    /// nothing, so it hinders no resume, delete or compaction; it reads each record once, a thousand in some 10 ms.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use wrenn_core::{SandboxFilter, SandboxState};
    ///
    /// for info in host.sandboxes(&SandboxFilter::new().state(SandboxState::Paused)).await? {
    ///     println!("{} was paused at {:?}", info.id, info.paused_at);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Failed`] where the directory of the records cannot be read.
    ///
    /// # Cancel-Safety
    /// It changes nothing.
    pub async fn sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<SandboxInfo>> {
        let mut infos = self.0.infos();
        infos.retain(|info| info.state != SandboxState::Paused && info.state != SandboxState::Ended);
        let (site, here) = (Arc::clone(&self.0.site), infos.iter().map(|info| info.id.clone()).collect());
        infos.extend(blocking("list the sandboxes", move || recorded(&site, &here)).await??);
        infos.retain(|info| filter.admits(info));
        infos.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(infos)
    }

    /// The records of sandboxes and templates that cannot be used, sorted by path: those that cannot be read, and those
    /// whose generation is gone or damaged. They stop nothing else, and what they may need stays on disk until they are
    /// mended or removed. Reads the headers of every generation that has a record.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// for damaged in host.damaged_records().await? {
    ///     eprintln!("{}: {}", damaged.path.display(), damaged.reason);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Failed`] where a directory of records cannot be read.
    ///
    /// # Cancel-Safety
    /// It changes nothing.
    pub async fn damaged_records(&self) -> Result<Vec<DamagedRecord>> {
        let site = Arc::clone(&self.0.site);
        blocking("look at the records", move || site.damaged_records()).await?
    }

    /// A sandbox that this program runs.
    ///
    /// # Errors
    /// [`Error::NotFound`]; a paused one is found by [`paused`](Self::paused).
    pub fn sandbox(&self, id: &SandboxId) -> Result<Sandbox> {
        let missing = || {
            Error::not_found(
                Subject::Sandbox(id.clone()),
                format!("no sandbox {id} runs here; `Host::sandboxes` lists what there is"),
            )
        };
        Ok(Sandbox::new(self.0.find(id).ok_or_else(missing)?, Arc::clone(&self.0)))
    }

    /// A sandbox that was paused, by this program or an earlier one.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host, id: wrenn_core::SandboxId) -> wrenn_core::Result<()> {
    /// let sandbox = host.paused(&id).await?.resume().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none, [`Error::Failed`] where its record cannot be read.
    ///
    /// # Cancel-Safety
    /// It changes nothing.
    pub async fn paused(&self, id: &SandboxId) -> Result<PausedSandbox> {
        let path = self.0.site.data.sandbox(id);
        let record = blocking("read the pause", move || record::read::<PausedRecord>(&path)).await??;
        let missing = || {
            Error::not_found(
                Subject::Sandbox(id.clone()),
                format!("no sandbox {id} is paused; `Host::sandboxes` lists what there is"),
            )
        };
        Ok(PausedSandbox::new(Arc::clone(&self.0), record.ok_or_else(missing)?))
    }

    /// The templates that [`Sandbox::create`] takes: images, and snapshots with a name. Sorted by name. A snapshot whose
    /// record cannot be read is passed over: [`damaged_records`](Self::damaged_records) names it.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// let snapshots = host.templates().await?.into_iter().filter(|template| template.is_snapshot());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Failed`] where a directory cannot be read.
    ///
    /// # Cancel-Safety
    /// It changes nothing.
    pub async fn templates(&self) -> Result<Vec<Template>> {
        let site = Arc::clone(&self.0.site);
        blocking("list the templates", move || Template::all(&site)).await?
    }

    /// Removes a template that a snapshot made. Sandboxes that came from it go on. What none of them depends on is deleted
    /// in the background.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// host.remove_template("warm-python").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] where no snapshot has the name, [`Error::InvalidInput`] for what is no name.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the template as it was, or removed.
    pub async fn remove_template(&self, name: &str) -> Result<()> {
        let name: TemplateName = name.parse()?;
        let path = self.0.site.data.template(&name);
        if !blocking("remove the template", move || record::remove(&path)).await?? {
            return Err(Error::not_found(Subject::Template(name.clone()), format!("no snapshot is named {name}")));
        }
        self.0.site.tidy();
        Ok(())
    }

    /// Deletes the generations that no template and no sandbox, running or paused, depends on, and returns when that is
    /// done. Every operation that may leave some has it done soon afterwards in the background; this is for who needs the
    /// space now.
    ///
    /// A record that cannot be read keeps what it may need: the generation that it names, where its text still tells that,
    /// or everything that is as old as it. A generation that is damaged keeps what it may reach.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// host.collect_garbage().await?;
    /// println!("{} bytes are free", host.metrics().await?.free_bytes);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Failed`] where a directory cannot be read or removed, or where another program has been collecting for
    /// minutes.
    ///
    /// # Cancel-Safety
    /// A collection that has begun goes on.
    pub async fn collect_garbage(&self) -> Result<()> {
        let site = Arc::clone(&self.0.site);
        blocking("collect garbage", move || site.collect_garbage()).await?
    }
}

/// The sandboxes that have a record and do not run in this program. Blocks.
fn recorded(site: &Site, here: &HashSet<SandboxId>) -> Result<Vec<SandboxInfo>> {
    let (mut infos, locks) = (Vec::new(), site.data.locks());
    for stem in record::stems(&site.data.sandboxes())? {
        let Ok(id) = stem.parse::<SandboxId>() else { continue };
        if here.contains(&id) {
            continue;
        }
        // A record that went meanwhile is a sandbox that went.
        let Ok(Some(record)) = record::read::<PausedRecord>(&site.data.sandbox(&id)) else { continue };
        let state = if locks.is_locked(id.as_str())? { SandboxState::Running } else { SandboxState::Paused };
        infos.push(record.info(state));
    }
    Ok(infos)
}
