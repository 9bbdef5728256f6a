//! Commands in a guest, in the manner of [`std::process`].

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;

use crate::agent::process::{InputKind, ProcessSpec};
use crate::error::{Error, Result};
use crate::exec::collect::{Collected, OUTPUT_LIMIT_BYTES, Output, check_envs, collect_fed};
use crate::exec::event::{PtySize, RUN};
use crate::process::child::Child;
use crate::sandbox::handle::Sandbox;

/// A command to run in a sandbox, with its options. It keeps the sandbox alive.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let sorted = sandbox.command("sort").arg("-r").input("a\nb\n").output().await?;
/// assert_eq!(sorted.stdout_utf8(), "b\na\n");
///
/// use wrenn_core::Event;
/// let mut child = sandbox.command("ping").args(["-c", "3", "127.0.0.1"]).spawn().await?;
/// while let Some(event) = child.next_event().await? {
///     if let Event::Stdout(bytes) = event {
///         print!("{}", String::from_utf8_lossy(&bytes));
///     }
/// }
/// # Ok(()) }
/// ```
///
/// # What a command begins with
///
/// | what | value |
/// |---|---|
/// | user, groups | [`user`](Self::user), else the sandbox's default user, `user` |
/// | directory | [`current_dir`](Self::current_dir), else that user's home, or `/` where that is missing or closed to the user |
/// | variables | `PATH`, `HOME`, `USER`, `LOGNAME`, and `TERM` at a terminal; then the language; then the sandbox's; then [`env`](Self::env). After [`env_clear`](Self::env_clear) the last ones alone |
/// | language | `LANG`, `LANGUAGE` and `LC_*` of the guest's `/etc/default/locale`, else `LANG=C.UTF-8` |
/// | file mode mask | that of the guest's agent, 022 |
/// | session | its own, which it leads; at a terminal that is its controlling one |
/// | signals | all at their defaults, none blocked |
/// | descriptors | the three standard ones; 65,536 may be open |
///
/// # What it leaves running
///
/// Processes that the command has started may outlive it, and run for as long as the sandbox does. The command counts
/// as ended when its own process has ended. What its descendants write to its output within the next 200 ms is still
/// collected; what they write later is discarded, and does not end them. A terminal hangs up when the program that
/// leads it ends: start what is to outlive a shell at a terminal with `nohup` or `setsid`. [`timeout`](Self::timeout)
/// and a kill end everything that the command has started, daemons too.
#[derive(Debug, Clone)]
pub struct Command {
    sandbox: Sandbox,
    spec: ProcessSpec,
    input: Option<Bytes>,
    timeout: Option<Duration>,
    output_limit_bytes: usize,
}

impl Sandbox {
    /// Runs a line in the guest's `bash` and collects what it writes, up to 16 MiB of each of the two streams.
    ///
    /// A command that fails is not an error: look at [`Output::status`].
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox does not run, or is paused or killed in the meantime.
    /// [`Error::VmEnded`] as soon as the VM ends by itself. [`Error::OutputTooLong`] and [`Error::OutputLost`], which
    /// bring what was collected. [`Error::Agent`] with [`AgentError::Unresponsive`](crate::AgentError::Unresponsive)
    /// where the guest answers nothing for half a minute.
    ///
    /// # Cancel-Safety
    /// Cancelling kills the command.
    pub async fn exec(&self, line: &str) -> Result<Output> {
        self.command("/bin/bash").args(["-c", line]).output().await
    }

    /// A command to set up and run, in the manner of [`std::process::Command`]. The guest runs `program` itself,
    /// without a shell.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Command::new(self.clone(), program.as_ref().to_owned())
    }

    /// A login shell at a terminal of the guest; [`Command::pty`] runs another program at one.
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
    pub(crate) fn new(sandbox: Sandbox, program: OsString) -> Self {
        let spec = ProcessSpec { cmd: program, ..ProcessSpec::default() };
        Self { sandbox, spec, input: None, timeout: None, output_limit_bytes: OUTPUT_LIMIT_BYTES }
    }

    /// Adds an argument. It need not be UTF-8.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.spec.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.spec.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable for this command alone.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.spec.envs.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Has the command begin with no variables but those that [`env`](Self::env) sets from now on: those that were set before
    /// are forgotten, and those of the sandbox and of the guest are left out. The guest finds the program all the same.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// let env = sandbox.command("env").env_clear().env("ONLY", "this").output().await?;
    /// assert_eq!(env.stdout_utf8(), "ONLY=this\n");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.spec.envs.clear();
        self.spec.env_clear = true;
        self
    }

    /// The working directory. Default: the user's home.
    #[must_use]
    pub fn current_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.spec.cwd = Some(path.as_ref().as_os_str().to_owned());
        self
    }

    /// The guest's user to run as. Default: `user`.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>) -> Self {
        self.spec.user = Some(name.into());
        self
    }

    /// The longest time that the command may run, in whole milliseconds. Then the guest kills it with everything that
    /// it has started. Time in which the sandbox is paused does not count. Default: no limit.
    ///
    /// The guest measures the time. Where the guest has not told of the end 2 s after it, the call ends with
    /// [`AgentError::Unresponsive`](crate::AgentError::Unresponsive), and the command may still run.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The whole standard input of a command that [`output`](Self::output) runs. A command may end without reading all
    /// of it. Default: nothing.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Bytes>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Gives a command that is [spawned](Self::spawn) a standard input that [`Child::take_stdin`] and
    /// [`Child::write_stdin`] write to. Default: an empty standard input.
    #[must_use]
    pub fn stdin_piped(mut self) -> Self {
        self.spec.stdin = true;
        self
    }

    /// Runs the command at a terminal: it writes [`Event::Pty`](crate::Event::Pty), reads what [`Child::write_stdin`]
    /// writes, and [`Child::resize`] changes the size. Default: pipes.
    #[must_use]
    pub fn pty(mut self, size: PtySize) -> Self {
        self.spec.pty = Some((size.columns, size.rows));
        self
    }

    /// A name for the process, by which [`Sandbox::attach`] finds it. Default: none.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.spec.tag = Some(tag.into());
        self
    }

    /// How many bytes of each of the two streams [`output`](Self::output) and [`Child::wait_with_output`] collect
    /// before they kill the command. Default: 16 MiB. It costs at most that much of the host's memory for each stream.
    #[must_use]
    pub fn output_limit(mut self, bytes_max: usize) -> Self {
        self.output_limit_bytes = bytes_max;
        self
    }

    /// Starts the command.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the guest has no such program. [`Error::InvalidInput`] for a user or a directory that
    /// the guest does not have, for a malformed environment variable, and for a command with an [`input`](Self::input).
    /// [`Error::InvalidState`] where the sandbox does not run. [`Error::CommandTimedOut`] where the time-out is over
    /// before the command has begun. [`Error::Agent`] where the guest answers nothing for half a minute.
    ///
    /// # Cancel-Safety
    /// Cancelling may leave the command running in the guest.
    pub async fn spawn(mut self) -> Result<Child> {
        check_envs(&self.spec.envs)?;
        if self.input.is_some() {
            return Err(Error::invalid("a spawned command has no `input`: write to what `Child::take_stdin` gives"));
        }
        let began = Instant::now();
        self.spec.timeout = self.timeout;
        let start = self.sandbox.agent().start(&self.spec).boxed();
        let started = self.sandbox.while_running(RUN, async { start.await.map_err(Error::command) }).await;
        let stream = started.map_err(|error| Collected::new(0).timed_out(error, self.timeout))?;
        let stdin = match (self.spec.pty, self.spec.stdin) {
            (Some(_), _) => Some(InputKind::Terminal),
            (None, true) => Some(InputKind::Pipe),
            (None, false) => None,
        };
        let child = Child::of(&self.sandbox, stream, stdin).await;
        let child = child.map_err(|error| Collected::new(0).timed_out(error, self.timeout))?;
        Ok(child.with_limits(began, self.timeout, self.output_limit_bytes))
    }

    /// Runs the command to its end and collects what it writes.
    ///
    /// A command that fails is not an error: look at [`Output::status`].
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn), but an [`input`](Self::input) is allowed. [`Error::CommandTimedOut`],
    /// [`Error::OutputTooLong`] and [`Error::OutputLost`] bring what the command had written until then, and after each
    /// of them the command is killed.
    ///
    /// # Cancel-Safety
    /// Cancelling kills the command.
    pub async fn output(self) -> Result<Output> {
        check_envs(&self.spec.envs)?;
        let agent = Arc::clone(self.sandbox.agent());
        let collected = collect_fed(&agent, self.spec, self.input, self.timeout, self.output_limit_bytes).boxed();
        self.sandbox.while_running(RUN, collected).await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::sync::Mutex;

    use buffa::Message as _;
    use wrenn_envd::proto::process::{ProcessConfig, StartRequest};

    use super::*;
    use crate::agent::fake::{FakeAgent, events, exit, start};
    use crate::sandbox::fake;

    /// What an agent is asked to start.
    async fn config_of(set_up: impl Fn(Command) -> Command) -> ProcessConfig {
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&bodies);
        let (_agent, client) = FakeAgent::start(move |_, body| {
            seen.lock().unwrap().push(body);
            events([start(7), exit(0)])
        })
        .await;
        let fake = fake::sandbox(client).await;
        set_up(fake.sandbox.command("x")).output().await.unwrap();
        // Before the message are five bytes of its envelope.
        let body = bodies.lock().unwrap()[0].slice(5..);
        StartRequest::decode_from_slice(&body).unwrap().process.into_option().unwrap()
    }

    #[tokio::test]
    async fn a_cleared_environment_forgets_what_was_set_before_and_takes_what_is_set_after() {
        let config = config_of(|command| command.env("BEFORE", "1").env_clear().env("AFTER", "2")).await;
        assert_eq!(config.env_clear, Some(true));
        assert_eq!(config.envs.into_iter().collect::<Vec<_>>(), [("AFTER".to_owned(), "2".to_owned())]);
        let config = config_of(|command| command.env_clear().env("AFTER", OsStr::from_bytes(b"\xff"))).await;
        assert_eq!((config.env_clear, config.env_bytes.len()), (Some(true), 1), "in bytes, too");
        let config = config_of(|command| command.env("A", "1")).await;
        assert_eq!((config.env_clear, config.envs.len()), (None, 1));
    }
}
