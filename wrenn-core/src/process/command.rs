//! Commands in a guest, in the manner of [`std::process`].

use crate::exec::collect::Output;
use crate::exec::collect::check_envs;
use crate::exec::collect::collect;
use crate::exec::event::PtySize;
use crate::exec::event::RUN;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::process::{InputKind, ProcessSpec};
use crate::error::{Error, Result};
use crate::process::child::Child;
use crate::sandbox::handle::Sandbox;

/// A command to run in a sandbox.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// use wrenn_core::Event;
///
/// let mut child = sandbox.command("sort").arg("-r").stdin_piped().spawn().await?;
/// child.write_stdin("a\nb\n").await?;
/// child.close_stdin().await?;
/// while let Some(event) = child.next_event().await? {
///     if let Event::Stdout(bytes) = event {
///         print!("{}", String::from_utf8_lossy(&bytes));
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Command {
    sandbox: Sandbox,
    spec: ProcessSpec,
    timeout: Option<Duration>,
    output_limit_bytes: usize,
}

impl Sandbox {
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
}

impl Command {
    pub(crate) fn new(sandbox: Sandbox, program: String) -> Self {
        let spec = ProcessSpec { cmd: program, ..ProcessSpec::default() };
        Self { sandbox, spec, timeout: None, output_limit_bytes: OUTPUT_LIMIT_BYTES }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.spec.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.spec.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable for this command alone.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.envs.insert(name.into(), value.into());
        self
    }

    /// The working directory. Default: the user's home.
    #[must_use]
    pub fn current_dir(mut self, path: impl Into<String>) -> Self {
        self.spec.cwd = Some(path.into());
        self
    }

    /// The guest's user to run as. Default: `user`.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>) -> Self {
        self.spec.user = Some(name.into());
        self
    }

    /// Kills the command, and all of its process group, in the guest when it has run for this long. Default: never.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Gives the command a standard input that [`Child::write_stdin`] writes to. Default: an empty one.
    #[must_use]
    pub fn stdin_piped(mut self) -> Self {
        self.spec.stdin = true;
        self
    }

    /// Runs the command at a terminal: it writes [`Event::Pty`](crate::Event::Pty), reads what [`Child::write_stdin`] writes, and
    /// [`Child::resize`] changes the size. Default: pipes.
    #[must_use]
    pub fn pty(mut self, size: PtySize) -> Self {
        self.spec.pty = Some((size.columns, size.rows));
        self
    }

    /// Another name for the process, by which [`Sandbox::attach`] finds it. Default: none.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.spec.tag = Some(tag.into());
        self
    }

    /// How many bytes of each stream [`output`](Self::output) collects before it kills the command. Default: 16 MiB.
    /// It costs that much memory at the most.
    #[must_use]
    pub fn output_limit(mut self, bytes_max: usize) -> Self {
        self.output_limit_bytes = bytes_max;
        self
    }

    /// Starts the command.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a command, a user or a directory that is not there; [`Error::InvalidState`] where the
    /// sandbox does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling may leave the command running in the guest.
    pub async fn spawn(mut self) -> Result<Child> {
        check_envs(&self.spec.envs)?;
        self.spec.timeout = self.timeout;
        let start = self.sandbox.agent().start(&self.spec);
        let watch = self.sandbox.watch_state();
        let stream = watch.while_running(RUN, async { start.await.map_err(Error::command) }).await?;
        let input = if self.spec.pty.is_some() { InputKind::Terminal } else { InputKind::Pipe };
        Child::of(&self.sandbox, stream, input).await
    }

    /// Runs the command to its end and collects what it writes.
    ///
    /// A command that fails is not an error: look at [`Output::status`].
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn); and [`Error::CommandTimedOut`], [`Error::OutputTooLong`], [`Error::OutputLost`], after
    /// which it is dead.
    ///
    /// # Cancel-Safety
    /// Cancelling kills the command.
    pub async fn output(self) -> Result<Output> {
        check_envs(&self.spec.envs)?;
        let agent = Arc::clone(self.sandbox.agent());
        let collected = collect(&agent, self.spec, self.timeout, self.output_limit_bytes);
        self.sandbox.watch_state().while_running(RUN, collected).await
    }
}

const OUTPUT_LIMIT_BYTES: usize = 16 << 20;
