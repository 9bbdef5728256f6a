//! The options of a host, and its opening.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wrenn_net::{Budget, Interceptor, SlotPool};
use wrenn_snapshot::LocalStore;

use crate::error::{Error, Result};
use crate::host::choice::{Choice, Chosen, Installed};
use crate::host::doctor::needs;
use crate::host::handle::Host;
use crate::network::refusals::Refusals;
use crate::network::secrets::{SecretSource, Secrets};
use crate::network::way_out::{HostNetwork, names_of};
use crate::runtime::blocking;
use crate::sandbox::registry::Registry;
use crate::sandbox::turns::Turns;
use crate::sandbox::wake::wake;
use crate::site::Site;
use crate::site::authority;
use crate::site::collector::Collector;
use crate::site::data_dir::{self, DataDir};
use crate::site::step::{Observer, Step};
use crate::vmm::driver::{Confinement, Driver};
use crate::vmm::machine::Vmm;
use crate::vmm::paging::Paging;
use crate::vmm::residents::Residents;
use crate::vmm::standbys::Standbys;
use crate::vmm::tracking::Tracking;
use crate::vmm::ways::{Asked, Handling};

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
    asked: Asked,
    observer: Observer,
    nameservers: Vec<IpAddr>,
    slots: Option<usize>,
    standbys: usize,
    starts_at_once: Option<usize>,
    budget: Option<Budget>,
    secrets: Secrets,
    trusted: Option<String>,
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
        self.asked.paging = Some(paging);
        self
    }

    /// How it becomes known which memory guests write, under QEMU. Default: `WRENN_TRACKING`, else the best way that the
    /// kernel has. [`Paging::Eager`] always compares, whatever is asked for.
    #[must_use]
    pub fn tracking(mut self, tracking: Tracking) -> Self {
        self.asked.tracking = Some(tracking);
        self
    }

    /// The servers that guests' questions to DNS are passed on to, whichever a guest asks. Default: those of the host's
    /// `/etc/resolv.conf`, as it is at the time.
    #[must_use]
    pub fn nameservers(mut self, servers: impl IntoIterator<Item = IpAddr>) -> Self {
        self.nameservers = servers.into_iter().collect();
        self
    }

    /// How many network slots are made ahead, so that a sandbox need not wait some milliseconds for its own. They are made
    /// in the background, from the first sandbox on. Each costs twelve descriptors, and some 100 KiB of the kernel's
    /// memory. Default: 4. With 0 each is made when it is needed.
    #[must_use]
    pub fn slots(mut self, ready: usize) -> Self {
        self.slots = Some(ready);
        self
    }

    /// How many VMMs may stand by, each started and with a network and a drive, so that a create, a resume and a fork's child
    /// need not wait for that. They are made in the background, as many for a template's kind of machine as were started in
    /// the last ten seconds, and end after a minute in which none was. One is used once, and its kind is the image, the
    /// processors and the memory. Each takes some 30 MiB and 25 descriptors, and none is made where the machine has less than
    /// 512 MiB to spare. With [`Paging::Mapped`] under Firecracker none stands by. Default: none.
    ///
    /// ```no_run
    /// # async fn demo() -> wrenn_core::Result<()> {
    /// use wrenn_core::{Host, Sandbox};
    ///
    /// let host = Host::builder().standbys(4).open().await?;
    /// let first = Sandbox::create(&host, "base").await?;
    /// // Another one of its kind does not wait for the start of a VMM.
    /// let second = Sandbox::create(&host, "base").await?;
    /// # drop((first, second));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn standbys(mut self, most: usize) -> Self {
        self.standbys = most;
        self
    }

    /// How many sandboxes of this host start at once: creates, resumes, and the children of forks. Others wait for their turn,
    /// first come, first served. A start that takes longer than three seconds goes on and gives its turn to the next one, so
    /// that nobody waits for a guest that does not come up. Default: four times the processors that this program may use.
    /// More make each start slower, and the last one no sooner. A 0 is a 1.
    ///
    /// ```no_run
    /// # async fn demo() -> wrenn_core::Result<()> {
    /// let host = wrenn_core::Host::builder().starts_at_once(16).open().await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn starts_at_once(mut self, count: usize) -> Self {
        self.starts_at_once = Some(count);
        self
    }

    /// What all sandboxes of this host may have of its network together. Default: half of the descriptors that the program
    /// may have (`ulimit -n`), and no limit of bytes.
    ///
    /// ```no_run
    /// # async fn demo() -> wrenn_core::Result<()> {
    /// use wrenn_core::{Host, NetworkBudget};
    ///
    /// let budget = NetworkBudget::default().bytes_out_per_second(50 << 20).begun_per_second(5000);
    /// let host = Host::builder().network_budget(budget).open().await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn network_budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Where the secrets come from that the [rules](crate::Rule) of sandboxes' network policies name, and the credentials of
    /// their [proxies](crate::UpstreamProxy). Default: nowhere, and a request or a connection that needs one fails.
    ///
    /// ```no_run
    /// # async fn demo() -> wrenn_core::Result<()> {
    /// use std::collections::BTreeMap;
    ///
    /// use wrenn_core::{Host, NetworkPolicy, Rule, Sandbox, Secret};
    ///
    /// let key = std::env::var("EXAMPLE_KEY").unwrap_or_default();
    /// let secrets = BTreeMap::from([("EXAMPLE_KEY".to_owned(), Secret::new(key))]);
    /// let host = Host::builder().secrets(secrets).open().await?;
    /// let rule = Rule::of("api.example.com:443")?.set_header("authorization", "Bearer ${secret.EXAMPLE_KEY}")?;
    /// let policy = NetworkPolicy::closed().allow(["api.example.com:443"])?.rule(rule)?;
    /// let sandbox = Sandbox::builder(&host, "base").network(policy).create().await?;
    /// sandbox.exec("curl -sS https://api.example.com/v1/models").await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn secrets(mut self, source: impl SecretSource + 'static) -> Self {
        self.secrets = Secrets::of(source);
        self
    }

    /// Certificate authorities, in PEM, by which servers may be certified that [rules](crate::Rule) are for, and
    /// [proxies](crate::UpstreamProxy), besides those that this host trusts. Default: none.
    #[must_use]
    pub fn trust(mut self, pem: impl Into<String>) -> Self {
        self.trusted = Some(pem.into());
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

    pub(crate) async fn firecracker_installed(&self) -> Result<Option<Installed>> {
        self.choice.firecracker().await
    }

    pub(crate) async fn qemu_version(&self) -> Result<String> {
        self.choice.qemu_version().await
    }

    /// The VMM and its rehearsed start; and where there is one, how it would handle memory, or why it cannot as it was
    /// asked for.
    pub(crate) async fn choose(self, data_dir: &Path) -> (Chosen, Option<Result<Handling>>) {
        let chosen = self.choice.make(data_dir).await;
        let memory = match &chosen.vmm {
            Ok((vmm, _)) => Some(memory_of(vmm, self.asked).await),
            Err(_) => None,
        };
        (chosen, memory)
    }

    /// Opens the host.
    ///
    /// # Errors
    /// [`Error::Host`](crate::Error::Host) where this machine lacks what every sandbox needs, such as the rights to
    /// write the directory, a VMM, a tap, or a user for the VMM. It lists everything that is missing, with a remedy for
    /// each. The same error where the paging or the tracking that was asked for cannot work here.
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) where what is to be [trusted](Self::trust) is no certificate.
    /// [`Error::NoSpace`](crate::Error::NoSpace) where the file system has no room for the directory's parts. A
    /// file system that becomes full later opens, so that what is kept can be deleted.
    /// [`Error::Failed`](crate::Error::Failed) where the directory cannot be made for another reason.
    ///
    /// # Cancel-Safety
    /// Cancelling may leave a data directory with a part of its directories. The next opening makes the others.
    pub async fn open(self) -> Result<Host> {
        let path = self.data_dir_or_default();
        let data_dir = path.clone();
        let data = blocking("open the data directory", move || DataDir::create(&data_dir)).await?;
        let Chosen { vmm, rehearsal } = self.choice.make(&path).await;
        let needs = blocking("look at what a VMM needs", || Ok::<_, Error>(needs::of_a_start(rehearsal?))).await??;
        let (data, (vmm, probe)) = needs::all(data, vmm, needs)?;
        tracing::debug!(?probe, vmm = vmm.version(), "opened {}", data.path().display());
        let memory = memory_of(&vmm, self.asked).await?;
        tracing::debug!(?memory, "how guests' memory is handled");
        let generations = data.generations();
        let store = blocking("open the snapshot store", move || LocalStore::open(generations)).await??;
        let kept = data.authority();
        let interceptor = Interceptor::when_needed(move || authority::open(&kept));
        let interceptor = match self.trusted {
            Some(pem) => interceptor.trust(&pem).map_err(|_| Error::invalid(NO_CERTIFICATES))?,
            None => interceptor,
        };
        let network = HostNetwork {
            slots: self.slots.map_or_else(SlotPool::default, SlotPool::new),
            names: names_of(self.nameservers),
            budget: self.budget.unwrap_or_default(),
            interceptor: Arc::new(interceptor),
            secrets: self.secrets,
            refusals: Refusals::default(),
        };
        let (observer, collector, residents) = (self.observer, Collector::default(), Residents::default());
        let standbys = Standbys::new(self.standbys);
        let turns = self.starts_at_once.map_or_else(Turns::default, Turns::new);
        let site = Site { data, store, vmm, probe, memory, residents, standbys, network, observer, collector };
        Ok(Host::assemble(site, turns))
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

    pub(crate) fn assemble(site: Site, turns: Turns) -> Self {
        let registry = Registry::new(site, turns, wake);
        registry.site.tidy();
        Self(registry)
    }
}

/// How a VMM's guests get their memory, and how what they write is found: as asked for, or the best that works here.
async fn memory_of(vmm: &Arc<dyn Vmm>, asked: Asked) -> Result<Handling> {
    let vmm = Arc::clone(vmm);
    blocking("try userfaultfd", move || asked.or_environment().choose(&vmm.ways())).await?
}

const NO_CERTIFICATES: &str = "the certificate authorities to trust are not one or more certificates in PEM";
