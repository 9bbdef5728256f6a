//! Processes that were started earlier, by whomever.

use wrenn_envd::proto::process::process_selector::Selector;

use crate::agent::process::InputKind;
use crate::agent::process::ProcessEntry;
use crate::error::{Error, Result};
use crate::exec::event::RUN;
use crate::process::child::Child;
use crate::sandbox::handle::Sandbox;

/// A process that runs in a sandbox, as [`Sandbox::processes`] lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its process id in the guest.
    pub pid: u32,
    /// Its other name, where it was given one.
    pub tag: Option<String>,
    /// What runs.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its working directory, where one was named.
    pub current_dir: Option<String>,
}

/// Which process: by number, or by [tag](crate::Command::tag).
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
    /// The commands that run: those that this sandbox was asked for, and, in a fork or a template's copy, those that it
    /// inherited.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it does not run.
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

    /// Attaches to a command that was started earlier, and reads what of its output the guest still holds, then what
    /// comes. Where that is not all of it, an [`Event::Lost`](crate::Event::Lost) comes first. Several handles may be
    /// attached to one process; each reads everything, and the slowest makes the process wait.
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
    /// [`Error::NotFound`] where no such process runs, nor has ended in the last ten minutes;
    /// [`Error::InvalidState`] where the sandbox does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling attaches nothing.
    pub async fn attach(&self, process: impl Into<ProcessRef>) -> Result<Child> {
        self.attach_from(process, 0).await
    }

    /// As [`attach`](Self::attach), from the byte `offset` of the output on, as [`Child::offset`] counts.
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
