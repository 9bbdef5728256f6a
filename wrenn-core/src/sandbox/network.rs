//! What a sandbox reaches, and what it has carried.

use std::sync::Arc;

use wrenn_net::{Egress, NetworkPolicy};

use crate::error::Result;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::request::Request;

impl Sandbox {
    /// Changes what the guest may reach, at once: connections and flows that the new policy does not let through are
    /// reset, and all of them where it names another [proxy](crate::UpstreamProxy). [Rules](crate::Rule) are followed in connections that the guest makes from then on; those that a change takes
    /// away are no longer followed in any.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) for a policy with an entry that has no effect;
    /// [`Error::InvalidState`](crate::Error::InvalidState) where the sandbox does not run; and where the policy has rules,
    /// what a call of the guest's agent can fail with, since the guest is made to trust wrenn's certificate authority.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the earlier policy. Without rules the call does not wait; with rules it waits for a pause, a fork or
    /// a snapshot that is under way.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// use wrenn_core::NetworkPolicy;
    ///
    /// sandbox.exec("pip install numpy").await?;
    /// sandbox.set_network(NetworkPolicy::closed()).await?;
    /// # Ok(()) }
    /// ```
    pub async fn set_network(&self, policy: NetworkPolicy) -> Result<()> {
        const WHAT: &str = "be given a network policy";
        policy.check()?;
        if let Some(authority) = self.registry().site.network.authority(&policy).await? {
            self.request(WHAT, |reply| Request::Trust(authority, reply)).await?;
        }
        self.with_way_out(WHAT, |egress| egress.set_policy(policy)).await
    }

    /// What the guest may reach now.
    ///
    /// # Errors
    /// [`Error::InvalidState`](crate::Error::InvalidState) where the sandbox does not run.
    ///
    /// # Cancel-Safety
    /// The call does not wait, so there is nothing to cancel.
    pub async fn network(&self) -> Result<NetworkPolicy> {
        self.with_way_out("tell its network policy", |egress| NetworkPolicy::clone(&egress.policy())).await
    }

    pub(super) async fn with_way_out<T>(&self, what: &'static str, with: impl FnOnce(Arc<Egress>) -> T) -> Result<T> {
        self.while_running(what, async { self.way_out().map(with).ok_or_else(|| self.refusal(what)) }).await
    }
}
