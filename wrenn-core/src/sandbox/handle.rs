//! The handle of a running sandbox. A task owns the sandbox's machine; handles send requests to that task.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use wrenn_net::Egress;

use crate::agent::client::AgentClient;
use crate::error::{Error, Result};
use crate::guest::then::SaveReport;
use crate::id::SandboxId;
use crate::network::publish::Publications;
use crate::sandbox::alive::Watch;
use crate::sandbox::registry::Registry;
use crate::sandbox::request::{Reply, Request};
use crate::sandbox::shared::Shared;
use crate::sandbox::template::{Taken, Template};
use crate::state::{Exit, SandboxInfo, SandboxState};
use crate::vmm::paging::RestoreReport;

/// A running sandbox. Clones are the same sandbox.
///
/// # Drop
/// When the last clone is dropped, the virtual machine is killed, and what it did since its last pause is lost. The
/// last pause is kept: [`Host::paused`](crate::Host::paused) finds it. [`kill`](Self::kill) removes the last pause too.
/// A sandbox that a connection has woken (see [`publish`](Self::publish)) is kept by its host as well, and runs on.
///
/// ```no_run
/// # async fn demo() -> wrenn_core::Result<()> {
/// use wrenn_core::{Host, Sandbox};
///
/// let host = Host::builder().open().await?;
/// let sandbox = Sandbox::create(&host, "base").await?;
/// let run = sandbox.exec("python3 -c 'print(6 * 7)'").await?;
/// assert_eq!(run.stdout_utf8(), "42\n");
/// sandbox.kill().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Sandbox {
    shared: Arc<Shared>,
    registry: Arc<Registry>,
}

impl Sandbox {
    pub(crate) fn new(shared: Arc<Shared>, registry: Arc<Registry>) -> Self {
        Self { shared, registry }
    }

    /// The sandbox's identity, which is also the guest's host name.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.shared.fixed.id
    }

    /// Where the sandbox is in its life, at this moment.
    #[must_use]
    pub fn state(&self) -> SandboxState {
        self.shared.state()
    }

    /// The sandbox's properties and state, at this moment.
    #[must_use]
    pub fn info(&self) -> SandboxInfo {
        self.shared.info()
    }

    /// Makes a template of the running sandbox under a new name. The sandbox goes on: its memory is copied while it
    /// runs, and it stands still only while the rest is copied ([`save_report`](Self::save_report) tells for how long).
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for a name that is taken, [`Error::InvalidInput`] for a malformed one; otherwise as
    /// [`pause`](Self::pause).
    ///
    /// # Cancel-Safety
    /// A snapshot that has begun goes on; [`Host::templates`](crate::Host::templates) lists its result.
    pub async fn snapshot(&self, name: &str) -> Result<Template> {
        let name = name.parse()?;
        self.request("be snapshotted", |reply| Request::Snapshot(name, Taken::Refused, reply)).await
    }

    /// As [`snapshot`](Self::snapshot), under a name that another snapshot may have: that one is replaced when this one is
    /// there, and not before. Sandboxes that were made of it go on.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// sandbox.snapshot("nightly").await?;
    /// sandbox.exec("git pull").await?;
    /// sandbox.replace_snapshot("nightly").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the name of an image; otherwise as [`snapshot`](Self::snapshot). What was there stays.
    ///
    /// # Cancel-Safety
    /// As [`snapshot`](Self::snapshot).
    pub async fn replace_snapshot(&self, name: &str) -> Result<Template> {
        let name = name.parse()?;
        self.request("be snapshotted", |reply| Request::Snapshot(name, Taken::Replaced, reply)).await
    }

    /// Ends the sandbox and removes everything of it, its last pause too. Returns when the VM is gone. It succeeds
    /// where the sandbox has ended or was paused before, and then removes nothing.
    ///
    /// # Errors
    /// [`Error::Failed`] where the record of its last pause cannot be removed within 10 s.
    ///
    /// # Cancel-Safety
    /// A kill that has begun goes on.
    pub async fn kill(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        if self.shared.kills.send(reply).is_err() {
            return Ok(());
        }
        // Where no answer comes, the sandbox had ended by itself, or was ending.
        answer.await.unwrap_or(Ok(()))
    }

    /// Waits until the sandbox no longer runs, and returns the reason. Where it has ended already, the call returns at
    /// once, and every call returns the same reason.
    ///
    /// A pause is such a reason: this handle is then over, and [`PausedSandbox::resume`](crate::PausedSandbox::resume)
    /// gives a new one.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: wrenn_core::Sandbox) {
    /// use wrenn_core::Exit;
    ///
    /// if let Exit::VmEnded { exit, console } = sandbox.wait().await {
    ///     eprintln!("the machine ended by itself ({exit}):\n{console}");
    /// }
    /// # }
    /// ```
    pub async fn wait(&self) -> Exit {
        self.shared.watch().exit().await
    }

    /// Replaces the time-to-live with one that counts from now. With `None` the sandbox has none, and lives as long as
    /// its handles.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox does not run.
    ///
    /// # Cancel-Safety
    /// The call does not wait, so there is nothing to cancel.
    pub async fn set_ttl(&self, ttl: Option<Duration>) -> Result<()> {
        self.while_running("be given a time-to-live", async {
            self.shared.countdown.send_modify(|countdown| countdown.restart(ttl));
            Ok(())
        })
        .await
    }

    /// Asks the guest's agent whether it answers. The call counts as a use of the sandbox, and so puts off the end of a
    /// time-to-live that counts from the last use.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox does not run, [`Error::Agent`] where its agent does not answer in
    /// time.
    ///
    /// # Cancel-Safety
    /// The call counts as a use even if it is cancelled.
    pub async fn ping(&self) -> Result<()> {
        let ping = async { self.shared.agent.ping().await.map_err(Error::agent("answer")) };
        self.while_running("be asked whether it is there", ping).await
    }

    /// Reports what the create, resume or fork of this sandbox has done so far: how long its steps took, and how many
    /// page faults, pages and bytes were served. The call waits for a pause, a fork or a snapshot that is under way.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn restore_report(&self) -> Result<RestoreReport> {
        self.request("report", Request::Report).await
    }

    /// Reports how long the last fork or snapshot of this sandbox stopped it; `None` before the first. The call waits
    /// for a pause, a fork or a snapshot that is under way.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn save_report(&self) -> Result<Option<SaveReport>> {
        self.request("report", Request::SaveReport).await
    }

    /// The last 64 KiB that the guest's kernel and the VMM printed. It works after the sandbox has ended, too.
    #[must_use]
    pub fn console(&self) -> String {
        self.shared.console.text()
    }

    /// The process id of the VMM on this host.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox does not run.
    ///
    /// # Cancel-Safety
    /// The call does not wait, so there is nothing to cancel.
    pub async fn vmm_pid(&self) -> Result<u32> {
        self.while_running("name its VMM", async { Ok(self.shared.vmm_pid) }).await
    }

    /// The token that the guest's agent asks for in the header `X-Access-Token`. A client that speaks the agent's
    /// protocol itself needs it. Each create, resume and fork makes a new token.
    #[must_use]
    pub fn agent_token(&self) -> Option<String> {
        self.shared.agent.token()
    }

    /// Its way out, for as long as it runs.
    pub(super) fn way_out(&self) -> Option<Arc<Egress>> {
        self.shared.egress.upgrade()
    }

    /// The error for an `operation` that the sandbox cannot do.
    pub(super) fn refusal(&self, operation: &'static str) -> Error {
        self.shared.refusal(operation)
    }

    pub(crate) fn agent(&self) -> &Arc<AgentClient> {
        &self.shared.agent
    }

    /// Does `work` with the agent while the sandbox runs, and fails as soon as the sandbox no longer runs.
    pub(crate) async fn while_running<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.watch_state().while_running(operation, work).await
    }

    pub(crate) fn publications(&self) -> &Publications {
        &self.shared.published
    }

    pub(crate) fn watch_state(&self) -> Watch {
        self.shared.watch()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.shared.is_over()
    }

    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    pub(super) async fn request<T>(
        &self,
        operation: &'static str,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.shared.requests.send(request(reply)).await.map_err(|_gone| self.shared.refusal(operation))?;
        match answer.await {
            Ok(answer) => answer,
            // The task dropped the request since the sandbox ends. The reason is known when the sandbox has ended.
            Err(_gone) => {
                let _ = tokio::time::timeout(END_MAX, self.shared.watch().over()).await;
                Err(self.shared.refusal(operation))
            }
        }
    }
}

/// The longest wait for the reason of an end. A killed VMM is gone within milliseconds, and a kill waits up to 10 s for
/// a slow disk to remove the last pause.
const END_MAX: Duration = Duration::from_secs(15);
