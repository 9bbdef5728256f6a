//! The start of a sandbox: a guest is restored, and a task owns it from then on.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tracing::Instrument as _;
use wrenn_envd::GuestEventKind;
use wrenn_snapshot::Generation;

use crate::error::Result;
use crate::guest::Guest;
use crate::guest::restore::{Asking, Renewal};
use crate::id::SandboxId;
use crate::network::publish::Publications;
use crate::sandbox::countdown::Countdown;
use crate::sandbox::event::HostEventKind;
use crate::sandbox::inbox::Inbox;
use crate::sandbox::registry::Registry;
use crate::sandbox::shared::Shared;
use crate::sandbox::sleepers::Claim;
use crate::sandbox::task::Task;
use crate::site::lock::FileLock;
use crate::site::step::Step;
use crate::state::{Fixed, Life, SandboxState};

/// The operation that starts a sandbox.
#[derive(Debug)]
pub(crate) enum Origin {
    Created,
    Resumed {
        /// The sandbox's, held while it runs.
        lock: FileLock,
        /// Those that are still listened on.
        ports: Claim,
    },
    /// A fork of a running sandbox.
    Forked(SandboxId),
}

impl Origin {
    fn told_to_the_guest(&self) -> GuestEventKind {
        match self {
            Self::Created => GuestEventKind::Created,
            Self::Resumed { .. } => GuestEventKind::Resumed,
            Self::Forked(_) => GuestEventKind::Forked,
        }
    }

    fn event(&self, fixed: &Fixed) -> HostEventKind {
        match self {
            Self::Created => HostEventKind::Created { template: fixed.template.clone() },
            Self::Resumed { .. } => HostEventKind::Resumed,
            Self::Forked(parent) => HostEventKind::Forked { parent: parent.clone() },
        }
    }
}

/// Restores a guest from `generation` when it is its turn, starts its task, and returns what its handles share.
///
/// # Cancel-Safety
/// Cancelling undoes what was made so far.
pub(crate) async fn start(
    registry: &Arc<Registry>,
    generation: Generation,
    fixed: Fixed,
    origin: Origin,
    asking: Asking,
) -> Result<Arc<Shared>> {
    registry.check_open()?;
    let renewal = Renewal {
        id: fixed.id.clone(),
        template: fixed.template.clone(),
        event: origin.told_to_the_guest(),
        envs: fixed.envs.clone(),
        user: fixed.defaults.user.clone(),
        workdir: fixed.defaults.workdir.clone(),
        network: fixed.network.clone(),
        network_limits: fixed.network_limits,
    };
    let site = &registry.site;
    let beginning = origin.event(&fixed);
    let (lock, ports) = match origin {
        Origin::Resumed { lock, ports } => (Some(lock), Some(ports)),
        Origin::Created | Origin::Forked(_) => (None, None),
    };
    let span = tracing::info_span!("sandbox", sandbox = %fixed.id);
    let restored = Guest::restore(site, generation, &renewal, asking).instrument(span.clone());
    let guest = registry.turns.take(restored).await?;
    site.observer.at(Step::Ready)?;
    let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
    let (kills, to_kill) = mpsc::unbounded_channel();
    let (countdown, counted) = watch::channel(Countdown::start(fixed.lifetime));
    let (life, lives) = watch::channel(Life { state: SandboxState::Running, exit: None });
    let agent = Arc::clone(&guest.agent);
    let inbox = Inbox { requests: inbox, kills: to_kill, countdown: counted, agent: Arc::clone(&agent) };
    let published = Arc::new(Publications::default());
    published.reopen(&agent, &fixed.published, ports.map(Claim::take).unwrap_or_default()).await;
    let shared = Arc::new(Shared {
        fixed: fixed.clone(),
        agent,
        console: guest.machine.console().clone(),
        vmm_pid: guest.machine.pid(),
        egress: guest.egress.as_ref().map(Arc::downgrade).unwrap_or_default(),
        published: Arc::clone(&published),
        requests,
        kills,
        countdown,
        life: lives,
    });
    registry.enrol(&shared)?;
    let id = fixed.id.clone();
    let task = Task::new(registry.premises(), guest, published, fixed, lock, life);
    tokio::spawn(task.run(inbox).instrument(span));
    registry.events.tell(&id, beginning);
    Ok(shared)
}

const REQUESTS_MAX: usize = 16;
