//! A sandbox of nothing but an agent, for what is done with a sandbox's agent alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use wrenn_net::{Limits, NetworkPolicy};
use wrenn_snapshot::LocalStore;

use crate::agent::client::AgentClient;
use crate::defaults::Defaults;
use crate::id::SandboxId;
use crate::network::way_out::HostNetwork;
use crate::sandbox::countdown::Countdown;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::registry::Registry;
use crate::sandbox::request::{Reply, Request};
use crate::sandbox::shared::Shared;
use crate::sandbox::turns::Turns;
use crate::sandbox::wake::wake;
use crate::site::Site;
use crate::site::collector::Collector;
use crate::site::data_dir::DataDir;
use crate::site::step::Observer;
use crate::state::{Exit, Fixed, Life, SandboxState};
use crate::vmm::console::Console;
use crate::vmm::driver::Driver;
use crate::vmm::fake::{FakeVmm, Script};
use crate::vmm::paging::Paging;
use crate::vmm::probe::Probe;
use crate::vmm::residents::Residents;
use crate::vmm::shape::Acceleration;
use crate::vmm::standbys::Standbys;
use crate::vmm::tracking::Tracking;
use crate::vmm::ways::Handling;

/// What a test keeps for as long as the sandbox is there.
pub(crate) struct FakeSandbox {
    pub(crate) sandbox: Sandbox,
    life: watch::Sender<Life>,
    _inbox: mpsc::Receiver<Request>,
    _kills: mpsc::UnboundedReceiver<Reply<()>>,
    _dir: TempDir,
}

/// A sandbox that runs, with that agent.
pub(crate) async fn sandbox(agent: Arc<AgentClient>) -> FakeSandbox {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::create(dir.path()).unwrap();
    let site = Site {
        store: LocalStore::open(data.generations()).unwrap(),
        data,
        vmm: Arc::new(FakeVmm::start(Script::default()).await),
        probe: Probe { driver: Driver::Qemu, acceleration: Acceleration::Tcg, reason: "a test".to_owned() },
        memory: Handling { paging: Paging::Lazy, tracking: Tracking::Vmm },
        residents: Residents::default(),
        standbys: Standbys::new(0),
        network: HostNetwork::default(),
        observer: Observer::default(),
        collector: Collector::default(),
    };
    let fixed = Fixed {
        id: SandboxId::random(),
        template: "fake".parse().unwrap(),
        vcpus: 1,
        memory_mib: 128,
        envs: BTreeMap::new(),
        defaults: Defaults::default(),
        labels: BTreeMap::new(),
        lifetime: None,
        created_at_ms: 0,
        network: NetworkPolicy::default(),
        network_limits: Limits::default(),
        published: Vec::new(),
    };
    let (requests, inbox) = mpsc::channel(1);
    let (kills, _kills) = mpsc::unbounded_channel();
    let (countdown, _) = watch::channel(Countdown::start(None));
    let (life, lives) = watch::channel(Life { state: SandboxState::Running, exit: None });
    let console = Console::default();
    let shared = Shared {
        fixed,
        agent,
        console,
        vmm_pid: 0,
        egress: Weak::new(),
        published: Arc::default(),
        requests,
        kills,
        countdown,
        life: lives,
    };
    let sandbox = Sandbox::new(Arc::new(shared), Registry::new(site, Turns::default(), wake));
    FakeSandbox { sandbox, life, _inbox: inbox, _kills, _dir: dir }
}

impl FakeSandbox {
    /// The sandbox is paused from now on.
    pub(crate) fn pause(&self) {
        self.life.send_replace(Life { state: SandboxState::Paused, exit: Some(Exit::Paused) });
    }
}
