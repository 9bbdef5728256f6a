//! Processes that run in a sandbox, and handles to those that another handle or another program started.

use wrenn_envd::proto::process::process_selector::Selector;

use crate::agent::process::InputKind;
use crate::agent::process::ProcessEntry;
use crate::error::{Error, Result};
use crate::exec::event::RUN;
use crate::process::child::Child;
use crate::sandbox::handle::Sandbox;

/// A process that runs in a sandbox, as [`Sandbox::processes`] lists it.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// for process in sandbox.processes().await? {
///     println!("{} {} {:?}", process.pid, process.program, process.args);
///     sandbox.attach(&process).await?.kill().await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessInfo {
    /// The process id in the guest.
    pub pid: u32,
    /// The [tag](crate::Command::tag) that the process was started with, if any.
    pub tag: Option<String>,
    /// The program, as it was named at the start.
    pub program: String,
    /// The program's arguments.
    pub args: Vec<String>,
    /// The working directory, where the start named one.
    pub current_dir: Option<String>,
}

/// Names a process of the guest, by its process id or by its [tag](crate::Command::tag).
///
/// ```
/// use wrenn_core::ProcessRef;
///
/// assert_eq!(ProcessRef::from(42), ProcessRef::Pid(42));
/// assert_eq!(ProcessRef::from("build"), ProcessRef::Tag("build".to_owned()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessRef {
    /// The process id in the guest.
    Pid(u32),
    /// The tag that it was started with.
    Tag(String),
}

impl From<u32> for ProcessRef {
    fn from(pid: u32) -> Self {
        Self::Pid(pid)
    }
}

impl From<&str> for ProcessRef {
    fn from(tag: &str) -> Self {
        Self::Tag(tag.to_owned())
    }
}

impl From<String> for ProcessRef {
    fn from(tag: String) -> Self {
        Self::Tag(tag)
    }
}

impl From<&ProcessInfo> for ProcessRef {
    fn from(info: &ProcessInfo) -> Self {
        Self::Pid(info.pid)
    }
}

impl Sandbox {
    /// Lists the commands that run in the sandbox. In a fork, and in a sandbox that was created from a snapshot, those
    /// that ran when the fork or the snapshot was made are among them.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox does not run, [`Error::Agent`] where its agent does not answer in
    /// time.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>> {
        let list = self.agent().list();
        let entries =
            self.while_running("list its processes", async { list.await.map_err(Error::agent("list its processes")) });
        let info = |entry: ProcessEntry| ProcessInfo {
            pid: entry.pid,
            tag: entry.tag,
            program: entry.cmd,
            args: entry.args,
            current_dir: entry.cwd,
        };
        Ok(entries.await?.into_iter().map(info).collect())
    }

    /// Attaches to a command that was started earlier. The handle reads the output that the guest still holds, and then
    /// what the command writes. Where the guest no longer holds all of it, an [`Event::Lost`](crate::Event::Lost) comes
    /// first. Several handles may be attached to one process. Each of them reads all output, and the process waits for
    /// the slowest.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// sandbox.command("make").tag("build").spawn().await?;
    /// for child in sandbox.fork(2).await? {
    ///     let child = child?;
    ///     println!("{}: {}", child.id(), child.attach("build").await?.wait().await?);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] where no such process runs or has ended in the last ten minutes. [`Error::InvalidState`]
    /// where the sandbox does not run. [`Error::Agent`] where its agent does not answer in time.
    ///
    /// # Cancel-Safety
    /// Cancelling attaches nothing.
    pub async fn attach(&self, process: impl Into<ProcessRef>) -> Result<Child> {
        self.attach_from(process, 0).await
    }

    /// As [`attach`](Self::attach), but the output begins at the byte `offset`, as [`Child::offset`] counts.
    ///
    /// # Errors
    /// As [`attach`](Self::attach); and [`Error::InvalidInput`] where the process has not written that much.
    ///
    /// # Cancel-Safety
    /// Cancelling attaches nothing.
    pub async fn attach_from(&self, process: impl Into<ProcessRef>, offset: u64) -> Result<Child> {
        let process = match process.into() {
            ProcessRef::Pid(pid) => Selector::Pid(pid),
            ProcessRef::Tag(tag) => Selector::Tag(tag),
        };
        let attach = self.agent().attach(process, offset);
        let stream = self.while_running(RUN, async { attach.await.map_err(Error::command) }).await?;
        Child::of(self, stream, Some(InputKind::Unknown)).await
    }
}
