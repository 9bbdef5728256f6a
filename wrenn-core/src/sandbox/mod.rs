//! A sandbox: the handle that programs hold. One task owns what is behind it ([`task`]); handles send it requests.

mod builder;
#[cfg(test)]
mod lifecycle_tests;
mod paused;
mod task;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::agent::AgentClient;
use crate::command::{Command, Output, PtySize};
use crate::files::Files;
use crate::guest::SaveReport;
use crate::template::Template;
use crate::{Error, Host, RestoreReport, Result, SandboxId, TemplateName};

pub use builder::SandboxBuilder;
pub(crate) use paused::PausedRecord;
pub use paused::PausedSandbox;
use task::Request;

/// A running sandbox. Clones are the same sandbox.
///
/// # Drop
/// When the last clone is dropped the virtual machine is killed and what it did since its last pause is lost. The pause
/// itself is kept: [`Host::paused`] finds it. [`kill`](Self::kill) removes that too.
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
pub struct Sandbox(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    fixed: Fixed,
    agent: Arc<AgentClient>,
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<SandboxState>,
}

/// A handle that keeps nothing alive.
#[derive(Debug, Clone)]
pub(crate) struct WeakSandbox(std::sync::Weak<Shared>);

/// What of a sandbox does not change, and survives its pauses.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Fixed {
    pub(crate) id: SandboxId,
    pub(crate) template: TemplateName,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) envs: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) lifetime: Option<Lifetime>,
    pub(crate) created_at_ms: u64,
}

/// How long a sandbox lives, and what then becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Lifetime {
    pub(crate) ttl: Duration,
    pub(crate) on_expiry: OnExpiry,
}

/// What becomes of a sandbox at the end of its time-to-live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum OnExpiry {
    /// It is killed, and nothing of it is kept.
    Kill,
    /// It is paused: [`Host::paused`] finds it.
    Pause,
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SandboxState {
    /// Its machine runs, here or in another program.
    Running,
    /// Its machine is stopped for a pause, a fork or a snapshot.
    Saving,
    /// It is on disk alone.
    Paused,
    /// It was killed, or its machine died.
    Ended,
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Saving => "being saved",
            Self::Paused => "paused",
            Self::Ended => "ended",
        })
    }
}

/// A sandbox as [`Host::sandboxes`] lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SandboxInfo {
    /// Its identity, and its host name.
    pub id: SandboxId,
    /// What it was created from.
    pub template: TemplateName,
    /// Where it is in its life.
    pub state: SandboxState,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// What its creator noted.
    pub labels: BTreeMap<String, String>,
    /// When it was created, in milliseconds since 1970.
    pub created_at_ms: u64,
}

impl Fixed {
    pub(crate) fn info(&self, state: SandboxState) -> SandboxInfo {
        SandboxInfo {
            id: self.id.clone(),
            template: self.template.clone(),
            state,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            labels: self.labels.clone(),
            created_at_ms: self.created_at_ms,
        }
    }
}

impl Sandbox {
    /// Creates a sandbox with the template's processors and memory.
    ///
    /// # Errors
    /// As [`SandboxBuilder::create`].
    ///
    /// # Cancel-Safety
    /// As [`SandboxBuilder::create`].
    pub async fn create(host: &Host, template: &str) -> Result<Self> {
        Self::builder(host, template).create().await
    }

    /// Sets options first.
    #[must_use]
    pub fn builder(host: &Host, template: &str) -> SandboxBuilder {
        SandboxBuilder::new(host, template)
    }

    /// The identity, which is also the guest's host name.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.0.fixed.id
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> SandboxState {
        *self.0.state.borrow()
    }

    /// All that is known of it.
    #[must_use]
    pub fn info(&self) -> SandboxInfo {
        self.0.fixed.info(self.state())
    }

    /// Runs a line in the guest's `bash` and collects what it writes, up to 16 MiB a stream.
    ///
    /// A command that fails is not an error: look at [`Output::status`].
    ///
    /// # Errors
    /// [`Error::VmEnded`] at once when the VM ends meanwhile, [`Error::OutputTooLong`], [`Error::InvalidState`].
    ///
    /// # Cancel-Safety
    /// Cancelling kills the command.
    pub async fn exec(&self, line: &str) -> Result<Output> {
        self.command("/bin/bash").args(["-c", line]).output().await
    }

    /// A command to set up and run, as [`std::process::Command`] has it. No shell is between.
    #[must_use]
    pub fn command(&self, program: impl Into<String>) -> Command {
        Command::new(self.clone(), program.into())
    }

    /// A login shell at a terminal; [`Command::pty`] runs another program at one.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// use wrenn_core::{Event, PtySize};
    ///
    /// let mut shell = sandbox.pty(PtySize { columns: 120, rows: 40 }).spawn().await?;
    /// shell.write_stdin("echo hello; exit\n").await?;
    /// while let Some(event) = shell.next_event().await? {
    ///     if let Event::Pty(bytes) = event {
    ///         print!("{}", String::from_utf8_lossy(&bytes));
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn pty(&self, size: PtySize) -> Command {
        self.command("/bin/bash").args(["-i", "-l"]).pty(size)
    }

    /// The guest's files, as the user `user`; [`Files::as_user`] names another.
    #[must_use]
    pub fn files(&self) -> Files {
        Files::new(self.clone())
    }

    /// Writes a file in the guest, whole or not at all, as the user `user`; missing directories are made. Short for
    /// [`Files::write`].
    ///
    /// # Errors
    /// As [`Files::write`].
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the file as it was, or written.
    pub async fn write_file(&self, path: &str, contents: impl Into<Bytes>) -> Result<()> {
        self.files().write(path, contents).await
    }

    /// Reads a file of the guest, of at most 256 MiB, as the user `user`. Short for [`Files::read`].
    ///
    /// # Errors
    /// As [`Files::read`].
    pub async fn read_file(&self, path: &str) -> Result<Bytes> {
        self.files().read(path).await
    }

    /// Stops the guest and keeps its memory, drive and devices on disk; everything else is freed. What is stored is
    /// what was written since the last pause.
    ///
    /// Streams of commands end with [`Error::InvalidState`]; their processes go on when the sandbox is resumed, and
    /// [`Child::reattach`](crate::Child::reattach) goes on with the stream.
    ///
    /// # Errors
    /// [`Error::NoSpace`] and others leave the sandbox running. [`Error::InvalidState`] where it does not run.
    ///
    /// # Cancel-Safety
    /// A pause that has begun goes on; [`Host::paused`] finds its result.
    pub async fn pause(&self) -> Result<PausedSandbox> {
        self.request("be paused", Request::Pause).await
    }

    /// Makes `count` copies of the running sandbox, each with its own identity, clock, randomness and token, and the
    /// same memory and files. The sandbox goes on: its memory is copied while it runs, and it stands still for what is
    /// left then, for its devices and its drive ([`save_report`](Self::save_report)).
    ///
    /// # Errors
    /// The outer error is the parent's, which goes on; each child has a result of its own.
    ///
    /// # Cancel-Safety
    /// A fork that has begun goes on, and its children are then dropped.
    pub async fn fork(&self, count: usize) -> Result<Vec<Result<Self>>> {
        if !(1..=FORK_MAX).contains(&count) {
            return Err(Error::invalid(format!("a fork of {count}: ask for 1 to {FORK_MAX} children")));
        }
        self.request("be forked", |reply| Request::Fork(count, reply)).await
    }

    /// Keeps the running sandbox as a template under a new name, and goes on.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a name that is taken or malformed; otherwise as [`pause`](Self::pause).
    ///
    /// # Cancel-Safety
    /// A snapshot that has begun goes on; [`Host::templates`] lists its result.
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
        self.0.agent.token()
    }

    pub(crate) fn agent(&self) -> &Arc<AgentClient> {
        &self.0.agent
    }

    pub(crate) fn downgrade(&self) -> WeakSandbox {
        WeakSandbox(Arc::downgrade(&self.0))
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
        Watch { id: self.id().clone(), state: self.0.state.clone() }
    }

    async fn request<T>(
        &self,
        operation: &'static str,
        request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let refused = || Error::InvalidState { id: self.id().clone(), operation, state: self.state() };
        self.0.requests.send(request(reply)).await.map_err(|_gone| refused())?;
        answer.await.map_err(|_gone| refused())?
    }
}

/// The E2B clients ask for as many at most.
const FORK_MAX: usize = 20;

impl WeakSandbox {
    pub(crate) fn upgrade(&self) -> Option<Sandbox> {
        self.0.upgrade().map(Sandbox)
    }
}

/// Who wants to know of a sandbox's end, without keeping it alive.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    id: SandboxId,
    state: watch::Receiver<SandboxState>,
}

impl Watch {
    /// Does `work` if the sandbox runs, and fails at once when it no longer does.
    pub(crate) async fn while_running<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let refused = |state| Error::InvalidState { id: self.id.clone(), operation, state };
        let now = *self.state.borrow();
        if is_over(&now) {
            return Err(refused(now));
        }
        let (mut state, mut later) = (self.state.clone(), self.state.clone());
        tokio::select! {
            result = work => match result {
                // The connection may break a moment before the end of the VM is known: the end is the better reason.
                Err(Error::Agent { source, what }) if source.is_retryable() => {
                    match tokio::time::timeout(END_GRACE, over(&mut later)).await {
                        Ok(state) => Err(refused(state)),
                        Err(_elapsed) => Err(Error::Agent { what, source }),
                    }
                }
                result => result,
            },
            state = over(&mut state) => Err(refused(state)),
        }
    }
}

fn is_over(state: &SandboxState) -> bool {
    matches!(state, SandboxState::Paused | SandboxState::Ended)
}

/// Waits until the sandbox no longer runs.
async fn over(state: &mut watch::Receiver<SandboxState>) -> SandboxState {
    state.wait_for(is_over).await.map_or(SandboxState::Ended, |state| *state)
}

const END_GRACE: Duration = Duration::from_millis(500);
