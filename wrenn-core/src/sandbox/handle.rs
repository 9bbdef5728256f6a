//! A running sandbox, as programs hold it. A task owns what is behind it; handles send it requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::agent::client::AgentClient;
use crate::error::{Error, Result};
use crate::guest::then::SaveReport;
use crate::id::SandboxId;
use crate::sandbox::alive::Watch;
use crate::sandbox::registry::Registry;
use crate::sandbox::request::{Reply, Request};
use crate::sandbox::shared::Shared;
use crate::sandbox::template::Template;
use crate::state::{SandboxInfo, SandboxState};
use crate::vmm::paging::RestoreReport;

/// A running sandbox. Clones are the same sandbox.
///
/// # Drop
/// When the last clone is dropped the virtual machine is killed and what it did since its last pause is lost. The pause
/// itself is kept: [`Host::paused`](crate::Host::paused) finds it. [`kill`](Self::kill) removes that too.
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

    /// The identity, which is also the guest's host name.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.shared.fixed.id
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> SandboxState {
        *self.shared.state.borrow()
    }

    /// All that is known of it.
    #[must_use]
    pub fn info(&self) -> SandboxInfo {
        self.shared.fixed.info(self.state())
    }

    /// Keeps the running sandbox as a template under a new name, and goes on.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a name that is taken or malformed; otherwise as [`pause`](Self::pause).
    ///
    /// # Cancel-Safety
    /// A snapshot that has begun goes on; [`Host::templates`](crate::Host::templates) lists its result.
    pub async fn snapshot(&self, name: &str) -> Result<Template> {
        let name = name.parse()?;
        self.request("be snapshotted", |reply| Request::Snapshot(name, reply)).await
    }

    /// Ends the sandbox and removes everything of it, its last pause too. Returns when the VM is gone.
    ///
    /// # Errors
    /// [`Error::Failed`] where the record of its pause cannot be removed. Killing what has ended is not an error.
    ///
    /// # Cancel-Safety
    /// A kill that has begun goes on.
    pub async fn kill(&self) -> Result<()> {
        match self.request("be killed", Request::Kill).await {
            Err(Error::InvalidState { state: SandboxState::Ended, .. }) => Ok(()),
            result => result,
        }
    }

    /// Replaces the time-to-live, counted from now. `None`: it lives as long as its handles.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it does not run.
    pub async fn set_ttl(&self, ttl: Option<Duration>) -> Result<()> {
        self.request("be given a time-to-live", |reply| Request::SetTtl(ttl, reply)).await
    }

    /// What the restore behind this sandbox has done so far: faults, pages and bytes that came in, and how long they
    /// took.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it does not run.
    pub async fn restore_report(&self) -> Result<RestoreReport> {
        self.request("report", Request::Report).await
    }

    /// What the last fork or snapshot of this sandbox took of its time; `None` before the first.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it does not run.
    pub async fn save_report(&self) -> Result<Option<SaveReport>> {
        self.request("report", Request::SaveReport).await
    }

    /// The last 64 KiB that the guest's kernel and the VMM printed.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it does not run.
    pub async fn console(&self) -> Result<String> {
        self.request("show its console", Request::Console).await
    }

    /// The process id of the VMM.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it does not run.
    pub async fn vmm_pid(&self) -> Result<u32> {
        self.request("name its VMM", Request::Pid).await
    }

    /// The token that the guest's agent asks for, in its header `X-Access-Token`: for clients that speak the agent's
    /// protocol themselves. Each create, resume and fork gives a new one.
    #[must_use]
    pub fn agent_token(&self) -> Option<String> {
        self.shared.agent.token()
    }

    pub(crate) fn agent(&self) -> &Arc<AgentClient> {
        &self.shared.agent
    }

    /// Does `work` with the agent, if the sandbox runs and for as long as it does.
    pub(crate) async fn while_running<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.watch_state().while_running(operation, work).await
    }

    pub(crate) fn watch_state(&self) -> Watch {
        Watch::new(self.id().clone(), self.shared.state.clone())
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
        let refused = || Error::InvalidState { id: self.id().clone(), operation, state: self.state(), exit: None };
        self.shared.requests.send(request(reply)).await.map_err(|_gone| refused())?;
        answer.await.map_err(|_gone| refused())?
    }
}
