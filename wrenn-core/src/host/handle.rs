//! A machine that runs sandboxes: its listings, its templates and its garbage.

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
use crate::vmm::tracking::Tracking;

/// A machine that runs sandboxes: an open data directory and the VMM that was chosen for it. Every use of this library
/// begins here. Clones are the same host.
///
/// Several programs may open one data directory at once. A sandbox that one of them runs is locked against the others,
/// and a sandbox that one of them paused can be resumed by any of them.
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
    /// The data directory, as an absolute path.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.0.site.data.path()
    }

    /// Which VMM and which acceleration were chosen for this machine, and why.
    #[must_use]
    pub fn probe(&self) -> &Probe {
        &self.0.site.probe
    }

    /// How it becomes known which memory guests write: as asked for, or the best way that this machine has.
    #[must_use]
    pub fn tracking(&self) -> Tracking {
        self.0.site.memory.tracking
    }

    /// The VMM and its version, for instance `qemu 7.2.22`.
    #[must_use]
    pub fn vmm_version(&self) -> &str {
        self.0.site.vmm.version()
    }

    /// Lists the sandboxes that `filter` admits, sorted by id. It knows those that this program runs, those that are
    /// paused, and those that another program runs and that were paused before. A sandbox that another program runs and
    /// that was never paused has no record, and is not listed.
    ///
    /// A record that cannot be read is passed over: [`damaged_records`](Self::damaged_records) names it. Listing locks
    /// nothing, so a resume, a delete or a compaction does not wait for it. It reads each record once: a thousand
    /// records take some 10 ms.
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
    /// [`Error::Failed`] where the directory of the records cannot be read, [`Error::Host`] where this user may not
    /// read it.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<SandboxInfo>> {
        let mut infos = self.0.infos();
        infos.retain(|info| info.state != SandboxState::Paused && info.state != SandboxState::Ended);
        let (site, here) = (Arc::clone(&self.0.site), infos.iter().map(|info| info.id.clone()).collect());
        infos.extend(blocking("list the sandboxes", move || recorded(&site, &here)).await??);
        infos.retain(|info| filter.admits(info));
        infos.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(infos)
    }

    /// Lists the records of sandboxes and templates that cannot be used, sorted by path: records that cannot be read,
    /// and records whose generation is gone or damaged. A damaged record does not disturb other sandboxes. What it may
    /// need stays on disk until the record is mended or removed. The call reads the headers of every generation that
    /// has a record.
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
    /// [`Error::Failed`] where a directory of records cannot be read, [`Error::Host`] where this user may not read it.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn damaged_records(&self) -> Result<Vec<DamagedRecord>> {
        let site = Arc::clone(&self.0.site);
        blocking("look at the records", move || site.damaged_records()).await?
    }

    /// Finds a sandbox that this program runs, also one that a connection has [woken](crate::PublishOptions::wake).
    /// [`paused`](Self::paused) finds one that is paused.
    ///
    /// # Errors
    /// [`Error::NotFound`] where this program runs no sandbox with this id.
    pub fn sandbox(&self, id: &SandboxId) -> Result<Sandbox> {
        let missing = || {
            Error::not_found(
                Subject::Sandbox(id.clone()),
                format!("no sandbox {id} runs here; `Host::sandboxes` lists what there is"),
            )
        };
        Ok(Sandbox::new(self.0.find(id).ok_or_else(missing)?, Arc::clone(&self.0)))
    }

    /// Finds a sandbox that was paused, by this program or another one.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host, id: wrenn_core::SandboxId) -> wrenn_core::Result<()> {
    /// let sandbox = host.paused(&id).await?.resume().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] where no sandbox with this id has a pause on disk, [`Error::Failed`] where its record cannot
    /// be read.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn paused(&self, id: &SandboxId) -> Result<PausedSandbox> {
        PausedSandbox::find(Arc::clone(&self.0), id).await
    }

    /// Lists the templates that [`Sandbox::create`] takes, sorted by name: images, and snapshots with a name. A
    /// snapshot whose record cannot be read is passed over: [`damaged_records`](Self::damaged_records) names it.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// let snapshots = host.templates().await?.into_iter().filter(|template| template.is_snapshot());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Image`] where the directory of images cannot be read. [`Error::Failed`] where the directory of
    /// snapshots cannot be read, [`Error::Host`] where this user may not read it.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn templates(&self) -> Result<Vec<Template>> {
        let site = Arc::clone(&self.0.site);
        blocking("list the templates", move || Template::all(&site)).await?
    }

    /// Removes a template that [`Sandbox::snapshot`] made. Sandboxes that were created from it are not affected. Stored
    /// data that no sandbox depends on is deleted in the background.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// host.remove_template("warm-python").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] where no snapshot has the name, [`Error::InvalidInput`] for a malformed name.
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
    /// done. Every operation that may leave such generations has them deleted in the background soon afterwards. Call
    /// this where the space is needed at once.
    ///
    /// What a damaged record may need is kept: the generations whose ids can still be found in its text, or, where
    /// there are none, every generation that is not a day younger than the record. What a damaged generation may depend
    /// on is kept too.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// host.collect_garbage().await?;
    /// println!("{} bytes are free", host.metrics().await?.free_bytes);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Failed`] where a directory cannot be read or removed, or where another program has been collecting
    /// garbage for two minutes.
    ///
    /// # Cancel-Safety
    /// Cancelling does not stop a collection that has begun.
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
        // A record that was removed since the directory was read belongs to a sandbox that is gone.
        let Ok(Some(record)) = record::read::<PausedRecord>(&site.data.sandbox(&id)) else { continue };
        let state = if locks.is_locked(id.as_str())? { SandboxState::Running } else { SandboxState::Paused };
        infos.push(record.info(state));
    }
    Ok(infos)
}
