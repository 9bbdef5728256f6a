//! The options of a new sandbox, and its creation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wrenn_net::{Limits, NetworkPolicy};
use wrenn_snapshot::Generation;

use crate::clock::unix_ms;
use crate::error::Result;
use crate::exec::collect::check_envs;
use crate::guest::restore::Asking;
use crate::host::handle::Host;
use crate::id::{SandboxId, TemplateName};
use crate::sandbox::handle::Sandbox;
use crate::sandbox::many::{Sandboxes, check_count};
use crate::sandbox::start::{Origin, start};
use crate::sandbox::template::{Found, Template, Wanted};
use crate::site::step::Step;
use crate::state::{Fixed, Lifetime, OnExpiry, TtlFrom};

impl Sandbox {
    /// Creates a sandbox from a template, with the default of every option of [`SandboxBuilder`].
    ///
    /// # Errors
    /// As [`SandboxBuilder::create`].
    ///
    /// # Cancel-Safety
    /// As [`SandboxBuilder::create`].
    pub async fn create(host: &Host, template: &str) -> Result<Self> {
        Self::builder(host, template).create().await
    }

    /// The options of a new sandbox, to set before [`SandboxBuilder::create`].
    #[must_use]
    pub fn builder(host: &Host, template: &str) -> SandboxBuilder {
        SandboxBuilder::new(host, template)
    }
}

/// The options of a new sandbox, made by [`Sandbox::builder`].
///
/// ```no_run
/// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
/// use wrenn_core::Sandbox;
///
/// let options = Sandbox::builder(host, "base").vcpus(2).memory_mib(1024).env("LANG", "C").label("owner", "ada");
/// let sandbox = options.create().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct SandboxBuilder {
    host: Host,
    template: String,
    wanted: Wanted,
    envs: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    ttl: Option<Duration>,
    on_expiry: OnExpiry,
    ttl_from: TtlFrom,
    network: NetworkPolicy,
    network_limits: Limits,
}

impl SandboxBuilder {
    fn new(host: &Host, template: &str) -> Self {
        Self {
            host: host.clone(),
            template: template.to_owned(),
            wanted: Wanted::default(),
            envs: BTreeMap::new(),
            labels: BTreeMap::new(),
            ttl: None,
            on_expiry: OnExpiry::Kill,
            ttl_from: TtlFrom::Start,
            network: NetworkPolicy::default(),
            network_limits: Limits::default(),
        }
    }

    /// How many virtual processors the guest has, 1 to 32. Default: those of the snapshot; 1 for an image. A snapshot
    /// takes no other number. The first create of an image with another number costs a boot, and the eight boots of
    /// each image that were used last are kept.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.wanted.vcpus = Some(vcpus);
        self
    }

    /// The guest's memory in MiB, 128 to 65,536. Default: that of the snapshot; 512 for an image. A snapshot takes no
    /// other size. The memory costs the host what the guest touches of it. The first create of an image with another
    /// size costs a boot, and the eight boots of each image that were used last are kept.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.wanted.memory_mib = Some(memory_mib);
        self
    }

    /// Adds a variable to the environment of every command. Kept across pauses.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.envs.insert(name.into(), value.into());
        self
    }

    /// Adds a label, which [`SandboxInfo::labels`](crate::SandboxInfo::labels) shows and
    /// [`SandboxFilter::label`](crate::SandboxFilter::label) finds. Kept across pauses.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// The time-to-live, after which [`on_expiry`](Self::on_expiry) happens. It counts from the create and anew from
    /// each resume, or from the last use if [`ttl_from`](Self::ttl_from) says so. Default: none, and a time-to-live of
    /// two years or more is none too.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// What the time-to-live counts from. Default: [`TtlFrom::Start`], a fixed end.
    #[must_use]
    pub fn ttl_from(mut self, from: TtlFrom) -> Self {
        self.ttl_from = from;
        self
    }

    /// What becomes of the sandbox when its time-to-live ends. Default: [`OnExpiry::Kill`].
    #[must_use]
    pub fn on_expiry(mut self, on_expiry: OnExpiry) -> Self {
        self.on_expiry = on_expiry;
        self
    }

    /// What the guest may reach. Default: the public internet, and nothing else. Kept across pauses, and a fork's children
    /// have their parent's; [`Sandbox::set_network`] changes it. A template has none: each sandbox of it has that of its
    /// create. A policy may have connections leave by a [proxy](crate::UpstreamProxy).
    ///
    /// ```no_run
    /// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use wrenn_core::{NetworkPolicy, Sandbox};
    ///
    /// let index_alone = NetworkPolicy::closed().allow(["pypi.org:443", "files.pythonhosted.org:443"])?;
    /// let sandbox = Sandbox::builder(host, "base").network(index_alone).create().await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn network(mut self, policy: NetworkPolicy) -> Self {
        self.network = policy;
        self
    }

    /// How much of the host's network the guest may have at once, and in a second. Kept across pauses, and a fork's children
    /// have their parent's. Default: [`NetworkLimits::default`](crate::NetworkLimits).
    ///
    /// ```no_run
    /// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use wrenn_core::{NetworkLimits, Sandbox};
    ///
    /// let megabyte = NetworkLimits { bytes_in_per_second: Some(1 << 20), ..NetworkLimits::default() };
    /// let sandbox = Sandbox::builder(host, "base").network_limits(megabyte).create().await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn network_limits(mut self, limits: Limits) -> Self {
        self.network_limits = limits;
        self
    }

    /// Creates the sandbox.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for an unknown template.
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) for a malformed name of a template or an environment
    /// variable, for processors or memory outside the limits, for others than those of a snapshot, and for a network
    /// policy with an entry that has no effect or limits of 0.
    /// [`Error::Host`](crate::Error::Host) where the machine lacks something. [`Error::Corrupt`](crate::Error::Corrupt)
    /// for a damaged template, [`Error::Image`](crate::Error::Image) for an image that cannot be opened, and
    /// [`Error::BootTimedOut`](crate::Error::BootTimedOut) where an image's guest has not come up in time.
    ///
    /// # Cancel-Safety
    /// Cancelling undoes what was made so far. A template's first boot that is cancelled is begun anew by the next
    /// create.
    pub async fn create(self) -> Result<Sandbox> {
        let asked = Instant::now();
        let registry = Arc::clone(&self.host.0);
        let (generation, fixed) = self.plan().await?;
        let shared = start(&registry, generation, fixed, Origin::Created, Asking::loaded(asked)).await?;
        Ok(Sandbox::new(shared, registry))
    }

    /// Creates `count` sandboxes, 1 to 1,000, that differ by their identity alone, and hands over each as soon as it is ready.
    /// The template is found once for all of them, and booted first where that has not been done.
    ///
    /// ```no_run
    /// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use wrenn_core::Sandbox;
    ///
    /// let mut sandboxes = Sandbox::builder(host, "base").label("owner", "ada").create_many(100).await?;
    /// while let Some(sandbox) = sandboxes.next().await {
    ///     println!("{}", sandbox?.id());
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`create`](Self::create), and [`Error::InvalidInput`](crate::Error::InvalidInput) for another `count`. An error
    /// that is about the template or an option is returned here. The stream has a result for each sandbox, with the errors
    /// of its start.
    ///
    /// # Cancel-Safety
    /// As [`create`](Self::create). Dropping the stream undoes the sandboxes that were not handed over.
    pub async fn create_many(self, count: usize) -> Result<Sandboxes> {
        check_count("a create of", count)?;
        let asked = Instant::now();
        let registry = Arc::clone(&self.host.0);
        let (generation, fixed) = self.plan().await?;
        Ok(Sandboxes::start(&registry, generation, fixed, || Origin::Created, count, asked))
    }

    /// What the sandbox starts from, and its properties.
    async fn plan(self) -> Result<(Generation, Fixed)> {
        let template: TemplateName = self.template.parse()?;
        check_envs(&self.envs)?;
        self.network.check()?;
        self.network_limits.check()?;
        let site = &self.host.0.site;
        site.observer.at(Step::Load)?;
        let Found { generation, shape, defaults } = Template::generation(site, &template, self.wanted).await?;
        let fixed = Fixed {
            id: SandboxId::random(),
            template,
            vcpus: shape.vcpus,
            memory_mib: shape.memory_mib,
            envs: defaults.env_with(self.envs),
            defaults,
            labels: self.labels,
            lifetime: self.ttl.map(|ttl| Lifetime { ttl, on_expiry: self.on_expiry, from: self.ttl_from }),
            created_at_ms: unix_ms(),
            network: self.network,
            network_limits: self.network_limits,
            published: Vec::new(),
        };
        Ok((generation, fixed))
    }
}
