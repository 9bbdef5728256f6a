//! A machine that runs sandboxes: its data directory, its VMM, and what runs now.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use wrenn_snapshot::{GenerationId, LocalStore};

use crate::data_dir::{self, DataDir};
use crate::doctor::Diagnosis;
use crate::driver::{Choice, check_paging};
use crate::probe::Probe;
use crate::sandbox::{PausedRecord, PausedSandbox, Sandbox, SandboxInfo, SandboxState, WeakSandbox};
use crate::step::{Observer, Step};
use crate::template::{Template, TemplateRecord};
use crate::vmm::Vmm;
use crate::{Confinement, Driver, Error, Paging, Result, SandboxId, TemplateName, record};

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
pub struct Host(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) data: DataDir,
    pub(crate) store: LocalStore,
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) probe: Probe,
    pub(crate) paging: Paging,
    pub(crate) observer: Observer,
    running: Mutex<HashMap<SandboxId, WeakSandbox>>,
}

/// Options of [`Host::builder`].
#[derive(Default)]
pub struct HostBuilder {
    data_dir: Option<PathBuf>,
    choice: Choice,
    paging: Option<Paging>,
    observer: Observer,
}

impl fmt::Debug for HostBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostBuilder")
            .field("data_dir", &self.data_dir)
            .field("choice", &self.choice)
            .finish_non_exhaustive()
    }
}

impl HostBuilder {
    /// Where everything is kept. Default: `WRENN_DATA_DIR`, else `/var/lib/wrenn` for root and
    /// `$XDG_DATA_HOME/wrenn` for others.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// The QEMU binary. Default: `WRENN_QEMU`, else `qemu-system-x86_64` on the `PATH`.
    #[must_use]
    pub fn qemu(mut self, path: impl Into<PathBuf>) -> Self {
        self.choice.qemu = Some(path.into());
        self
    }

    /// The Firecracker binary. Default: `WRENN_FIRECRACKER`, else `firecracker` on the `PATH`.
    #[must_use]
    pub fn firecracker(mut self, path: impl Into<PathBuf>) -> Self {
        self.choice.firecracker = Some(path.into());
        self
    }

    /// The VMM. Default: `WRENN_VMM`, which is `firecracker` or `qemu`; else Firecracker where it is installed and KVM
    /// serves it, and QEMU elsewhere.
    #[must_use]
    pub fn driver(mut self, driver: Driver) -> Self {
        self.choice.driver = Some(driver);
        self
    }

    /// How Firecracker is kept from the host. Default: `WRENN_CONFINEMENT`, which is `user` or `jailer`; else
    /// [`Confinement::User`].
    #[must_use]
    pub fn confinement(mut self, confinement: Confinement) -> Self {
        self.choice.confinement = Some(confinement);
        self
    }

    /// How memory comes to restored guests. Default: `WRENN_PAGING`, else [`Paging::Lazy`] where the host allows it.
    #[must_use]
    pub fn paging(mut self, paging: Paging) -> Self {
        self.paging = Some(paging);
        self
    }

    /// Called before each step of making or resuming a sandbox; an error that it returns fails that step, and what was
    /// made so far is undone. For progress displays, and for tests of what a failure leaves behind. Default: none.
    #[must_use]
    pub fn on_step(mut self, observe: impl Fn(Step) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        self.observer = Observer::new(observe);
        self
    }

    /// Looks at this machine: what it has of what wrenn needs, which VMM would be used and why, and a remedy for each
    /// thing that is not there. Takes up to some seconds, starts nothing that stays, and never fails.
    ///
    /// ```no_run
    /// # async fn demo() {
    /// println!("{}", wrenn_core::Host::builder().doctor().await);
    /// # }
    /// ```
    pub async fn doctor(self) -> Diagnosis {
        Diagnosis::make(self).await
    }

    pub(crate) fn data_dir_or_default(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(data_dir::default_path)
    }

    pub(crate) async fn firecracker_version(&self) -> Result<Option<String>> {
        self.choice.firecracker_version().await
    }

    pub(crate) async fn qemu_version(&self) -> Result<String> {
        self.choice.qemu_version().await
    }

    pub(crate) async fn choose(self, data_dir: &Path) -> Result<Probe> {
        self.choice.make(data_dir).await.map(|(_, probe)| probe)
    }

    /// Opens the host.
    ///
    /// # Errors
    /// [`Error::Host`] where the directory cannot be written or the VMM is missing, each with its remedy.
    pub async fn open(self) -> Result<Host> {
        let data = DataDir::create(&self.data_dir_or_default())?;
        let (vmm, probe) = self.choice.make(data.path()).await?;
        tracing::debug!(?probe, vmm = vmm.version(), "opened {}", data.path().display());
        let paging = self.paging.unwrap_or_else(Paging::choose);
        check_paging(paging, &probe)?;
        Host::assemble(data, vmm, probe, paging, self.observer)
    }
}

impl Host {
    /// Opens a data directory, making it if need be. What other programs left when they were killed is reclaimed, and
    /// every paused sandbox is kept.
    ///
    /// # Errors
    /// As [`HostBuilder::open`].
    pub async fn open(data_dir: impl AsRef<Path>) -> Result<Self> {
        Self::builder().data_dir(data_dir.as_ref()).open().await
    }

    /// Opens the default data directory, or sets other options first.
    #[must_use]
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    /// Looks at this machine with the default options: [`HostBuilder::doctor`].
    pub async fn doctor() -> Diagnosis {
        Self::builder().doctor().await
    }

    pub(crate) fn assemble(
        data: DataDir,
        vmm: Arc<dyn Vmm>,
        probe: Probe,
        paging: Paging,
        observer: Observer,
    ) -> Result<Self> {
        let store = LocalStore::open(data.generations())?;
        let host = Self(Arc::new(Inner { data, store, vmm, probe, paging, observer, running: Mutex::default() }));
        host.tidy();
        Ok(host)
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.0.data.path()
    }

    /// What was found of this machine, and what was chosen.
    #[must_use]
    pub fn probe(&self) -> &Probe {
        &self.0.probe
    }

    /// The driver and its version, for instance `qemu 7.2.22`.
    #[must_use]
    pub fn vmm_version(&self) -> &str {
        self.0.vmm.version()
    }

    /// Every sandbox: what this program runs, what is paused, and what other programs run that had been paused
    /// before. Sorted by id.
    ///
    /// # Errors
    /// [`Error::Failed`] where a record cannot be read.
    pub fn sandboxes(&self) -> Result<Vec<SandboxInfo>> {
        let mut infos: Vec<SandboxInfo> = {
            let running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.values().filter_map(WeakSandbox::upgrade).map(|sandbox| sandbox.info()).collect()
        };
        infos.retain(|info| info.state != SandboxState::Paused && info.state != SandboxState::Ended);
        for stem in record::stems(&self.0.data.sandboxes())? {
            let id: SandboxId = stem.parse()?;
            if infos.iter().any(|info| info.id == id) {
                continue;
            }
            let elsewhere = self.0.data.try_lock(id.as_str())?.is_none();
            // A record that went meanwhile is a sandbox that went.
            let Some(record) = record::read::<PausedRecord>(&self.0.data.sandbox(&id))? else { continue };
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
        let running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        running
            .get(id)
            .and_then(WeakSandbox::upgrade)
            .ok_or_else(|| Error::NotFound(format!("no sandbox {id} runs here; `Host::sandboxes` lists what there is")))
    }

    /// A sandbox that was paused, by this program or an earlier one.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none.
    pub fn paused(&self, id: &SandboxId) -> Result<PausedSandbox> {
        let record = record::read::<PausedRecord>(&self.0.data.sandbox(id))?;
        let missing = || Error::NotFound(format!("no sandbox {id} is paused; `Host::sandboxes` lists what there is"));
        Ok(PausedSandbox::new(self.clone(), record.ok_or_else(missing)?))
    }

    /// The templates that [`Sandbox::create`] takes: images, and snapshots with a name. Sorted by name.
    ///
    /// # Errors
    /// [`Error::Failed`] where a record cannot be read.
    pub fn templates(&self) -> Result<Vec<Template>> {
        Template::all(self)
    }

    /// Removes a template that a snapshot made. Sandboxes that came from it go on.
    ///
    /// # Errors
    /// [`Error::NotFound`] where no snapshot has the name.
    pub fn remove_template(&self, name: &str) -> Result<()> {
        let name: TemplateName = name.parse()?;
        if !record::remove(&self.0.data.template(&name))? {
            return Err(Error::NotFound(format!("no snapshot is named {name}")));
        }
        self.tidy();
        Ok(())
    }

    /// Deletes the generations that no template and no sandbox, running or paused, depends on. Every operation that may
    /// leave some calls it; blocks for as long as deleting takes.
    ///
    /// # Errors
    /// [`Error::Failed`] where a record cannot be read, [`Error::Corrupt`] where what it names is damaged: then nothing
    /// is deleted.
    pub fn collect_garbage(&self) -> Result<()> {
        // One collector at a time, and no record is written between the listing and the deleting: see `keep`.
        let _collecting = self.0.data.lock(COLLECT_LOCK)?;
        let removed = self.0.store.collect(&self.roots_of_others(None)?)?;
        if !removed.is_empty() {
            tracing::debug!(count = removed.len(), "collected generations");
        }
        Ok(())
    }

    /// Writes a record that keeps a generation, which the caller has in hand until this returns. A collection that began
    /// before has then seen that it is in hand, and one that begins later sees the record. Blocks.
    pub(crate) fn keep(&self, path: &Path, record: &impl serde::Serialize) -> Result<()> {
        let _no_collection = self.0.data.lock(COLLECT_LOCK)?;
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
        let data = &self.0.data;
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

    pub(crate) fn enrol(&self, sandbox: &Sandbox) {
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, sandbox| sandbox.upgrade().is_some());
        running.insert(sandbox.id().clone(), sandbox.downgrade());
    }
}

const COLLECT_LOCK: &str = "collect";
