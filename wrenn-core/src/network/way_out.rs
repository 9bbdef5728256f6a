//! What all guests of a host share of their ways out, and how one is opened.

use std::net::IpAddr;
use std::sync::Arc;

use wrenn_net::{Authority, Budget, Egress, Gate, Interceptor, Limits, Names, NetworkPolicy, SlotPool};

use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::network::refusals::Refusals;
use crate::network::secrets::Secrets;
use crate::runtime::blocking;

/// What all guests of a host share: slots that are ready, the names that are known, what follows the rules of their
/// policies, and who listens to what they are refused.
#[derive(Debug)]
pub(crate) struct HostNetwork {
    pub(crate) slots: SlotPool,
    pub(crate) names: Arc<Names>,
    pub(crate) budget: Budget,
    pub(crate) interceptor: Arc<Interceptor>,
    pub(crate) secrets: Secrets,
    pub(crate) refusals: Refusals,
}

/// A guest's way out, before it is open.
#[derive(Debug)]
pub(crate) struct WayOut {
    policy: NetworkPolicy,
    limits: Limits,
    names: Arc<Names>,
    budget: Budget,
    /// Whose it is; `None` for a guest that is nobody's yet.
    owner: Option<Owner>,
}

/// A sandbox, and what its way out has of the host for it.
#[derive(Debug)]
struct Owner {
    sandbox: SandboxId,
    refusals: Refusals,
    interceptor: Arc<Interceptor>,
    secrets: Secrets,
}

impl Default for HostNetwork {
    fn default() -> Self {
        Self {
            // Whoever opens no host makes each slot by itself.
            slots: SlotPool::new(0),
            names: names_of(Vec::new()),
            budget: Budget::default(),
            interceptor: Arc::new(Interceptor::when_needed(Authority::generate)),
            secrets: Secrets::default(),
            refusals: Refusals::default(),
        }
    }
}

impl HostNetwork {
    /// The authority that a guest with this policy has to trust, in PEM: where rules put something into what it sends by
    /// TLS.
    pub(crate) async fn authority(&self, policy: &NetworkPolicy) -> Result<Option<String>> {
        const WHAT: &str = "make a guest trust wrenn's certificate authority";
        if policy.rules().is_empty() {
            return Ok(None);
        }
        let interceptor = Arc::clone(&self.interceptor);
        let certificate = move || interceptor.authority().map(|authority| authority.certificate().to_owned());
        blocking(WHAT, certificate).await?.map(Some).map_err(|error| Error::failed(WHAT)(error.into()))
    }

    /// A way out for a sandbox.
    pub(crate) fn way_out(&self, sandbox: &SandboxId, policy: NetworkPolicy, limits: Limits) -> WayOut {
        let owner = Owner {
            sandbox: sandbox.clone(),
            refusals: self.refusals.clone(),
            interceptor: Arc::clone(&self.interceptor),
            secrets: self.secrets.clone(),
        };
        WayOut { limits, owner: Some(owner), ..self.way_out_of_nobody(policy) }
    }

    /// A way out that leads nowhere.
    pub(crate) fn closed(&self) -> WayOut {
        self.way_out_of_nobody(NetworkPolicy::closed())
    }

    fn way_out_of_nobody(&self, policy: NetworkPolicy) -> WayOut {
        let (names, budget) = (Arc::clone(&self.names), self.budget.clone());
        WayOut { policy, limits: Limits::default(), names, budget, owner: None }
    }
}

impl WayOut {
    pub(crate) fn open(self, gate: Gate) -> Result<Egress> {
        let builder = Egress::builder(self.policy, self.names).limits(self.limits).budget(&self.budget);
        let builder = match self.owner {
            Some(Owner { sandbox, refusals, interceptor, secrets }) => builder
                .intercept(interceptor, secrets.of_sandbox(&sandbox))
                .on_refusal(move |refused| refusals.tell(&sandbox, refused)),
            None => builder,
        };
        Ok(builder.open(gate)?)
    }
}

/// Names as these servers know them; as the host's own do where there is none.
pub(crate) fn names_of(servers: Vec<IpAddr>) -> Arc<Names> {
    Arc::new(if servers.is_empty() { Names::of_host() } else { Names::asking(servers) })
}
