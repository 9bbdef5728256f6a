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
use crate::state::{Exit, SandboxInfo, SandboxState};
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
        self.shared.state()
    }

    /// All that is known of it.
    #[must_use]
    pub fn info(&self) -> SandboxInfo {
        self.shared.info()
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
        let (reply, answer) = oneshot::channel();
        if self.shared.kills.send(reply).is_err() {
            return Ok(());
        }
        // No answer: it had ended, or was ending, by itself.
        answer.await.unwrap_or(Ok(()))
    }

    /// Waits until the sandbox no longer runs, and says why: at once where it has ended, as often as it is asked.
    ///
    /// A sandbox that was paused has ended for its handles: the one that [`PausedSandbox::resume`](crate::PausedSandbox::resume)
    /// gives is another.
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

    /// Replaces the time-to-live, counted from now. `None`: it lives as long as its handles.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it does not run.
    pub async fn set_ttl(&self, ttl: Option<Duration>) -> Result<()> {
        self.while_running("be given a time-to-live", async {
            self.shared.countdown.send_modify(|countdown| countdown.restart(ttl));
            Ok(())
        })
        .await
    }

    /// Uses the sandbox without doing anything, for a time-to-live that counts from the last use, and says that its
    /// agent answers.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it does not run, [`Error::Agent`] where its agent does not answer in time.
    pub async fn ping(&self) -> Result<()> {
        let ping = async { self.shared.agent.ping().await.map_err(Error::agent("answer")) };
        self.while_running("be asked whether it is there", ping).await
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

    /// The last 64 KiB that the guest's kernel and the VMM printed, also when the sandbox has ended.
    #[must_use]
    pub fn console(&self) -> String {
        self.shared.console.text()
    }

    /// The process id of the VMM.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it does not run.
    pub async fn vmm_pid(&self) -> Result<u32> {
        self.while_running("name its VMM", async { Ok(self.shared.vmm_pid) }).await
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
        self.shared.watch()
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state(), SandboxState::Paused | SandboxState::Ended)
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
            // The task dropped what it was doing, since the sandbox ends: the reason comes when it has.
            Err(_gone) => {
                let _ = tokio::time::timeout(END_MAX, self.shared.watch().over()).await;
                Err(self.shared.refusal(operation))
            }
        }
    }
}

/// A VMM is gone within a moment of its kill; removing a pause from a slow disk may take as long as a kill waits for it.
const END_MAX: Duration = Duration::from_secs(15);
