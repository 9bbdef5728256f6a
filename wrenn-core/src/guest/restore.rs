//! A guest made of a generation, as somebody new.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wrenn_envd::{GuestEventKind, InitRequest};
use wrenn_net::{Limits, NetworkPolicy};
use wrenn_snapshot::{Generation, GenerationId, WorkingSet};

use crate::agent::client::AgentClient;
use crate::error::{Error, Result};
use crate::guest::lineage::Lineage;
use crate::guest::manifest::Manifest;
use crate::guest::stopwatch::Stopwatch;
use crate::guest::{Guest, berth, drive, flat, working_set};
use crate::id::{SandboxId, TemplateName};
use crate::network::slot::Network;
use crate::patience::patient;
use crate::runtime::blocking;
use crate::site::Site;
use crate::site::step::Step;
use crate::vmm::metadata::Metadata;
use crate::vmm::paging::Paging;
use crate::vmm::parts::Restore;
use crate::vmm::phases::RestoreSteps;
use crate::vmm::residents::Share;
use crate::vmm::standbys::{Berth, Kind};
use crate::vmm::tracking::Tracking;
use crate::vmm::ways::Handling;

/// What a restored guest becomes.
#[derive(Debug, Clone)]
pub(crate) struct Renewal {
    pub(crate) id: SandboxId,
    pub(crate) template: TemplateName,
    /// How it comes to be, for the guest's hooks and clients.
    pub(crate) event: GuestEventKind,
    /// The environment of processes that are started from now on.
    pub(crate) envs: BTreeMap<String, String>,
    /// Who they are; `None` keeps whom the guest has.
    pub(crate) user: Option<String>,
    /// Where they start; `None` keeps what the guest has.
    pub(crate) workdir: Option<String>,
    /// What it may reach.
    pub(crate) network: NetworkPolicy,
    pub(crate) network_limits: Limits,
}

/// When a caller asked for a guest, so that its report counts the time before the restore too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking {
    at: Instant,
    load: Duration,
}

impl Asking {
    /// The generation has been found and loaded now.
    pub(crate) fn loaded(asked: Instant) -> Self {
        Self { at: asked, load: asked.elapsed() }
    }
}

impl Guest {
    /// Makes a running guest of a generation, with a new identity.
    pub(crate) async fn restore(
        site: &Arc<Site>,
        from: Generation,
        renewal: &Renewal,
        Asking { at: asked, load }: Asking,
    ) -> Result<Self> {
        let mut steps = RestoreSteps { load, turn: asked.elapsed().saturating_sub(load), ..RestoreSteps::default() };
        let mut watch = Stopwatch::start();
        let step = |step| site.observer.at(step);
        let mut manifest = checked_manifest(site, &from).await?;
        let checked = watch.lap();
        step(Step::Slot)?;
        let authority = site.network.authority(&renewal.network).await?;
        let way_out = site.network.way_out(&renewal.id, renewal.network.clone(), renewal.network_limits);
        let kind = berth::kind_of(&from, &manifest);
        let place = match site.standbys.take(&kind) {
            Some(berth) => Place::Ready(berth),
            None => Place::Network(site.vmm.network(&site.network.slots).await?),
        };
        steps.slot = watch.lap();
        let Berth { connector, gate, drive, engine } = place.berth(site, &from, &kind).await?;
        let egress = berth::open_way_out(way_out, gate)?;
        let working_set = working_set_of(site, from.id()).await?;
        steps.open = checked + watch.lap();
        step(Step::Machine)?;
        let fill = drive::fill(site, from.clone(), &drive);
        let (share, restore) = memory_of(site, &from, working_set).await?;
        let started = async {
            let vmm = engine.started(&*site.vmm, &manifest.shape, site.memory.paging).await?;
            Ok((vmm.restore(restore).await?, watch.lap()))
        };
        // The drive is filled while the VMM starts.
        let ((machine, machine_took), ()) = tokio::try_join!(started, fill)?;
        steps.machine = machine_took;
        steps.drive = watch.lap();
        let agent = Arc::new(AgentClient::new(Arc::downgrade(&connector), manifest.token.clone()));
        let token = fresh_token();
        manifest.token = Some(token.clone());
        let metadata = Metadata { sandbox: renewal.id.clone(), template: renewal.template.clone(), token };
        let (drive, _connector) = (Arc::new(drive), connector);
        let restored_from = Some(from.id());
        let (lineage, halted, save_report) = (None, false, None);
        let mut guest = Self {
            machine,
            agent,
            drive,
            _connector,
            _share: share,
            egress,
            restored_from,
            lineage,
            manifest,
            halted,
            save_report,
            steps,
        };
        guest.machine.describe(&metadata).await?;
        step(Step::Run)?;
        guest.let_run().await?;
        guest.steps.run = watch.lap();
        step(Step::Agent)?;
        guest.alive("restore the guest", guest.renew(renewal, authority)).await?;
        guest.steps.agent = watch.lap();
        guest.steps.whole = asked.elapsed();
        // This comes last, since it may begin a compaction, and the restore is not to wait for that.
        let lineage = guest.lineage.insert(Lineage::new(from, Some(renewal.id.clone())));
        lineage.shorten(site);
        berth::started(site, kind);
        Ok(guest)
    }

    /// Lets the guest's kernel run, and resets the connections that it believes it has, before a process of the guest's
    /// waits for what will not come.
    async fn let_run(&mut self) -> Result<()> {
        self.machine.resume().await?;
        if let Some(egress) = &self.egress {
            egress.reset(&self.manifest.connections);
        }
        Ok(())
    }

    /// Renews everything that must differ between two guests of one generation. The agent thaws the guest's processes
    /// only after this, so none of them runs before.
    async fn renew(&self, renewal: &Renewal, authority: Option<String>) -> Result<()> {
        let token = self.manifest.token.clone();
        let init = InitRequest {
            access_token: token.clone(),
            env_vars: Some(renewal.envs.clone()),
            default_user: renewal.user.clone(),
            default_workdir: renewal.workdir.clone(),
            instance_id: Some(renewal.id.to_string()),
            env_id: Some(renewal.template.to_string()),
            event: Some(renewal.event),
            entropy: Some(rand::random::<[u8; 64]>().to_vec()),
            hostname: Some(renewal.id.to_string()),
            ca_bundle: authority,
            machine_id: Some(format!("{:032x}", rand::random::<u128>())),
            ..Self::clock()
        };
        self.agent.init_within(&init, patient(RENEW_TIMEOUT)).await.map_err(Error::agent("renew its guest"))?;
        self.agent.set_token(token);
        Ok(())
    }
}

/// How the guest gets its memory, and its part in what it shares.
async fn memory_of(
    site: &Arc<Site>,
    from: &Generation,
    working_set: Option<WorkingSet>,
) -> Result<(Option<Share>, Restore)> {
    let (share, shared) = match site.memory.sharing() {
        Some(sharing) => site.residents.join(from, sharing).await.map(|(share, memory)| (Some(share), memory))?,
        None => (None, None),
    };
    let Handling { paging, tracking } = site.memory;
    Ok((share, Restore { generation: from.clone(), paging, tracking, working_set, shared }))
}

/// What a generation says of its guest, which can run here.
async fn checked_manifest(site: &Arc<Site>, generation: &Generation) -> Result<Manifest> {
    let (site, generation) = (Arc::clone(site), generation.clone());
    let read = move || {
        let manifest = Manifest::of(&generation)?;
        manifest.check_restorable(&site)?;
        Ok::<_, Error>(manifest)
    };
    blocking("read the snapshot", read).await?
}

/// Where a guest comes to be.
enum Place {
    /// In what stood by.
    Ready(Berth),
    /// In what is to be made around this.
    Network(Network),
}

impl Place {
    async fn berth(self, site: &Arc<Site>, from: &Generation, kind: &Kind) -> Result<Berth> {
        let network = match self {
            Self::Ready(berth) => return Ok(berth),
            Self::Network(network) => network,
        };
        let flat = match site.memory {
            Handling { paging: Paging::Mapped, tracking: Tracking::Vmm } => Some(flat::memory(site, from).await?),
            _ => None,
        };
        berth::prepare(site, kind, network, flat).await
    }
}

/// The pages that an earlier restore touched, where they are read ahead.
async fn working_set_of(site: &Arc<Site>, from: GenerationId) -> Result<Option<WorkingSet>> {
    match site.memory.paging {
        Paging::Lazy | Paging::Populate => {
            let site = Arc::clone(site);
            blocking("read what is to be read ahead", move || working_set::of(&site, from)).await
        }
        Paging::OnDemand | Paging::Eager | Paging::Mapped => Ok(None),
    }
}

/// A restored agent answers in tens of milliseconds; the rest is for a machine under load.
const RENEW_TIMEOUT: Duration = Duration::from_secs(30);

fn fresh_token() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}
