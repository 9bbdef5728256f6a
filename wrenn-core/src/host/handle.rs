//! The door to everything: a machine that runs sandboxes.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result, Subject};
use crate::id::{SandboxId, TemplateName};
use crate::sandbox::handle::Sandbox;
use crate::sandbox::paused::PausedSandbox;
use crate::sandbox::registry::Registry;
use crate::sandbox::template::Template;
use crate::site::record;
use crate::site::records::PausedRecord;
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
/// for template in host.templates()? {
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

    /// Every sandbox: what this program runs, what is paused, and what other programs run that had been paused
    /// before. Sorted by id.
    ///
    /// # Errors
    /// [`Error::Failed`] where a record cannot be read.
    pub fn sandboxes(&self) -> Result<Vec<SandboxInfo>> {
        let mut infos = self.0.infos();
        infos.retain(|info| info.state != SandboxState::Paused && info.state != SandboxState::Ended);
        for stem in record::stems(&self.0.site.data.sandboxes())? {
            let id: SandboxId = stem.parse()?;
            if infos.iter().any(|info| info.id == id) {
                continue;
            }
            let elsewhere = self.0.site.data.try_lock(id.as_str())?.is_none();
            // A record that went meanwhile is a sandbox that went.
            let Some(record) = record::read::<PausedRecord>(&self.0.site.data.sandbox(&id))? else { continue };
            infos.push(record.info(if elsewhere { SandboxState::Running } else { SandboxState::Paused }));
        }
        infos.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(infos)
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
    /// # Errors
    /// [`Error::NotFound`] where there is none.
    pub fn paused(&self, id: &SandboxId) -> Result<PausedSandbox> {
        let record = record::read::<PausedRecord>(&self.0.site.data.sandbox(id))?;
        let missing = || {
            Error::not_found(
                Subject::Sandbox(id.clone()),
                format!("no sandbox {id} is paused; `Host::sandboxes` lists what there is"),
            )
        };
        Ok(PausedSandbox::new(Arc::clone(&self.0), record.ok_or_else(missing)?))
    }

    /// The templates that [`Sandbox::create`] takes: images, and snapshots with a name. Sorted by name.
    ///
    /// # Errors
    /// [`Error::Failed`] where a record cannot be read.
    pub fn templates(&self) -> Result<Vec<Template>> {
        Template::all(&self.0.site)
    }

    /// Removes a template that a snapshot made. Sandboxes that came from it go on.
    ///
    /// # Errors
    /// [`Error::NotFound`] where no snapshot has the name.
    pub fn remove_template(&self, name: &str) -> Result<()> {
        let name: TemplateName = name.parse()?;
        if !record::remove(&self.0.site.data.template(&name))? {
            return Err(Error::not_found(Subject::Template(name.clone()), format!("no snapshot is named {name}")));
        }
        self.0.site.tidy();
        Ok(())
    }

    /// Deletes the generations that no template and no sandbox, running or paused, depends on. Every operation that may
    /// leave some calls it; blocks for as long as deleting takes.
    ///
    /// # Errors
    /// [`Error::Failed`] where a record cannot be read, [`Error::Corrupt`] where what it names is damaged: then nothing
    /// is deleted.
    pub fn collect_garbage(&self) -> Result<()> {
        self.0.site.collect_garbage()
    }
}
