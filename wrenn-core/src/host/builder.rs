//! The options of a host, and its opening.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wrenn_snapshot::LocalStore;

use crate::error::Result;
use crate::host::choice::Choice;
use crate::host::handle::Host;
use crate::runtime::blocking;
use crate::sandbox::registry::Registry;
use crate::site::Site;
use crate::site::collector::Collector;
use crate::site::data_dir::{self, DataDir};
use crate::site::step::{Observer, Step};
use crate::vmm::driver::{Confinement, Driver};
use crate::vmm::paging::Paging;
use crate::vmm::probe::Probe;

/// The options of a host, made by [`Host::builder`]. Every option has a default.
///
/// ```no_run
/// # async fn demo() -> wrenn_core::Result<()> {
/// use wrenn_core::{Driver, Host, Paging};
///
/// let host = Host::builder().data_dir("/srv/wrenn").driver(Driver::Qemu).paging(Paging::Lazy).open().await?;
/// println!("{}: {}", host.vmm_version(), host.probe().reason);
/// # Ok(()) }
/// ```
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
    /// The directory that everything is kept in. Default: `WRENN_DATA_DIR`, else `/var/lib/wrenn` for root and
    /// `$XDG_DATA_HOME/wrenn` for others.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// The path of the QEMU binary. Default: `WRENN_QEMU`, else `qemu-system-x86_64` on the `PATH`.
    #[must_use]
    pub fn qemu(mut self, path: impl Into<PathBuf>) -> Self {
        self.choice.qemu = Some(path.into());
        self
    }

    /// The path of the Firecracker binary. Default: `WRENN_FIRECRACKER`, else `firecracker` on the `PATH`.
    #[must_use]
    pub fn firecracker(mut self, path: impl Into<PathBuf>) -> Self {
        self.choice.firecracker = Some(path.into());
        self
    }

    /// The VMM that runs the sandboxes. Default: `WRENN_VMM`, which is `firecracker` or `qemu`; else Firecracker where
    /// it is installed and a short guest runs to its end under KVM, and QEMU elsewhere.
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

    /// A function to call before each step of creating, resuming or forking a sandbox. An error that it returns fails
    /// that step, and what was made so far is undone. It is for displays of progress, and for tests of what a failure
    /// leaves behind. It costs the time that it takes, since the step waits for it. Default: none.
    #[must_use]
    pub fn on_step(mut self, observe: impl Fn(Step) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        self.observer = Observer::new(observe);
        self
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
    /// [`Error::Host`](crate::Error::Host) where this user may not write the directory, the VMM is missing, or the
    /// paging that was asked for cannot work here, each with its remedy. [`Error::NoSpace`](crate::Error::NoSpace)
    /// where the file system is full. [`Error::Failed`](crate::Error::Failed) where the directory cannot be made for
    /// another reason.
    ///
    /// # Cancel-Safety
    /// Cancelling may leave a data directory with a part of its directories. The next opening makes the others.
    pub async fn open(self) -> Result<Host> {
        let path = self.data_dir_or_default();
        let data = blocking("open the data directory", move || DataDir::create(&path)).await??;
        let (vmm, probe) = self.choice.make(data.path()).await?;
        tracing::debug!(?probe, vmm = vmm.version(), "opened {}", data.path().display());
        let paging = Paging::choose(self.paging.or_else(Paging::from_environment), &vmm.ways())?;
        let generations = data.generations();
        let store = blocking("open the snapshot store", move || LocalStore::open(generations)).await??;
        let (observer, collector) = (self.observer, Collector::default());
        Ok(Host::assemble(Site { data, store, vmm, probe, paging, observer, collector }))
    }
}

impl Host {
    /// Opens a data directory, and makes it where there is none. Disk space that killed programs left behind is freed
    /// in the background, and every paused sandbox is kept.
    ///
    /// # Errors
    /// As [`HostBuilder::open`].
    ///
    /// # Cancel-Safety
    /// As [`HostBuilder::open`].
    pub async fn open(data_dir: impl AsRef<Path>) -> Result<Self> {
        Self::builder().data_dir(data_dir.as_ref()).open().await
    }

    /// The options of a host, to set before [`HostBuilder::open`].
    #[must_use]
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    pub(crate) fn assemble(site: Site) -> Self {
        let registry = Registry::new(site);
        registry.site.tidy();
        Self(Arc::new(registry))
    }
}
