//! A process from the request to its first instruction.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::fchown},
    },
    path::PathBuf,
    process::ExitStatus,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::Duration,
};

use nix::unistd::{Gid, Uid};
use tokio::{
    net::unix::pipe,
    sync::{Mutex, oneshot, watch},
};

use super::{
    command::{Command, CommandError, DEFAULT_PATH},
    input::Input,
    journal::Journal,
    output::Outputs,
    running::Process,
    table::{Begun, Table},
    terminal::{Ends, Terminal},
};
use crate::{
    agent::{
        cgroups::{Groups, Kind, Leaf},
        settings::Settings,
        sys::terminal::Size,
        sys::{self, Program, StartError},
        users::User,
    },
    proto::process::ProcessConfig,
};

/// A process that can be started: its words are well-formed, its user is known. Whether its directory and its program are
/// there it finds out by itself.
#[derive(Debug)]
pub(super) struct Launch {
    command: Command,
    config: ProcessConfig,
    tag: Option<String>,
    envs: BTreeMap<OsString, OsString>,
    cwd: PathBuf,
    /// Whether `cwd` is only the user's home, in whose place any directory is good enough.
    else_in_root: bool,
    user: User,
    streams: Streams,
}

/// What a process's standard streams are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streams {
    /// Three pipes.
    Pipes,
    /// Two, and nothing to read from.
    OutputPipes,
    /// One terminal, which controls the process.
    Terminal(Size),
}

/// A process that runs, and what its task needs.
pub(super) struct Launched {
    pub(super) process: Arc<Process>,
    pub(super) outputs: Outputs,
    pub(super) exit: oneshot::Receiver<ExitStatus>,
    /// How long it took to start.
    pub(super) took: Duration,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("the working directory {0:?} is missing, or is no directory")]
    NoDirectory(PathBuf),
    #[error("the working directory {0:?} cannot be entered")]
    Directory(PathBuf, #[source] io::Error),
    #[error("the command {command:?} is not in PATH={path:?}")]
    NotInPath { command: OsString, path: OsString },
    #[error("the command {0:?} is missing, or what it is to be run by")]
    NoProgram(OsString),
    #[error(
        "there is no shell in this image, neither {BASH} nor {SH}: run a program of it by its path, without a shell"
    )]
    NoShell,
    #[error("the command {0:?} cannot be executed")]
    Spawn(OsString, #[source] io::Error),
    #[error("the command {0:?} was stopped before it began, or its directory or its program does not answer")]
    HeldUp(OsString),
    #[error("no terminal can be opened")]
    Terminal(#[source] io::Error),
    #[error("no control group can be made")]
    Group(#[source] io::Error),
}

impl Launch {
    /// Brings together what `config` names.
    pub(super) fn prepare(
        config: ProcessConfig,
        tag: Option<String>,
        streams: Streams,
        user: User,
        settings: &Settings,
    ) -> Result<Self, LaunchError> {
        let command = Command::of(&config)?;
        let envs = command.environment(&user, settings, matches!(streams, Streams::Terminal(_)));
        let (cwd, else_in_root) = command.directory(&user, settings);
        Ok(Self { command, config, tag, envs, cwd, else_in_root, user, streams })
    }

    /// Starts it. It runs until it ends; nobody need read from it.
    ///
    /// # Cancel-Safety
    ///
    /// A process that begins all the same is killed.
    pub(super) async fn spawn(mut self, table: &Arc<Table>, groups: &Groups) -> Result<Launched, LaunchError> {
        let kind = if matches!(self.streams, Streams::Terminal(_)) { Kind::Pty } else { Kind::User };
        let leaf = groups.leaf(kind).map_err(LaunchError::Group)?;
        let leaf = RetireOnDrop { leaf, groups };
        let begun = match self.spawn_in(leaf.leaf.as_ref(), table).await {
            Err(LaunchError::NoProgram(program)) if program == BASH => {
                self.command.program = SH.into();
                self.spawn_in(leaf.leaf.as_ref(), table).await.map_err(|error| match error {
                    LaunchError::NoProgram(_) => LaunchError::NoShell,
                    error => error,
                })
            }
            begun => begun,
        };
        let (begun, ours) = begun?;
        Ok(launched(begun, ours, self, leaf.keep(), table))
    }

    async fn spawn_in(&self, leaf: Option<&Leaf>, table: &Arc<Table>) -> Result<(Begun, Ours), LaunchError> {
        let failed = |error| LaunchError::Spawn(self.command.program.clone(), error);
        let (streams, ours) = match self.streams {
            Streams::Terminal(size) => self.terminal(size).map_err(LaunchError::Terminal)?,
            Streams::Pipes => self.pipes(true).map_err(failed)?,
            Streams::OutputPipes => self.pipes(false).map_err(failed)?,
        };
        let program = self.program(leaf, streams).map_err(failed)?;
        let begun = table.spawn(program).await.map_err(|error| self.told(error))?;
        Ok((begun, ours))
    }

    /// What is wrong, in the caller's words.
    fn told(&self, error: StartError) -> LaunchError {
        let program = || self.command.program.clone();
        let is_missing =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
        match error {
            StartError::HeldUp => LaunchError::HeldUp(program()),
            StartError::Directory(error) if is_missing(&error) => LaunchError::NoDirectory(self.cwd.clone()),
            StartError::Directory(error) => LaunchError::Directory(self.cwd.clone(), error),
            StartError::Program(error) if is_missing(&error) => match program().as_bytes().contains(&b'/') {
                true => LaunchError::NoProgram(program()),
                false => LaunchError::NotInPath { command: program(), path: self.path().to_owned() },
            },
            StartError::Program(error) | StartError::Process(error) => LaunchError::Spawn(program(), error),
        }
    }

    fn path(&self) -> &OsStr {
        // A command with none of its own is looked for all the same.
        self.envs.get(OsStr::new("PATH")).map_or_else(|| OsStr::new(DEFAULT_PATH), OsString::as_os_str)
    }

    /// The process's ends, and the agent's. A pipe belongs to the user, who may open it anew as `/dev/stdout`.
    fn pipes(&self, has_input: bool) -> io::Result<([OwnedFd; 3], Ours)> {
        let (stdin, input) = if has_input {
            let (theirs, ours) = io::pipe()?;
            self.give(&theirs)?;
            (theirs.into(), Input::Pipe(Mutex::new(Some(pipe::Sender::from_owned_fd(ours.into())?))))
        } else {
            (nothing()?, Input::Null)
        };
        let ((stdout, their_stdout), (stderr, their_stderr)) = (io::pipe()?, io::pipe()?);
        self.give(&their_stdout)?;
        self.give(&their_stderr)?;
        let outputs = Outputs::pipes(stdout, stderr)?;
        Ok(([stdin, their_stdout.into(), their_stderr.into()], Ours { input, outputs }))
    }

    fn give(&self, pipe: impl AsFd) -> io::Result<()> {
        if nix::unistd::geteuid().is_root() {
            fchown(pipe, Some(self.user.uid), Some(self.user.gid))?;
        }
        Ok(())
    }

    fn terminal(&self, size: Size) -> io::Result<([OwnedFd; 3], Ours)> {
        let Ends { terminal, reader, slave } = Terminal::open(size)?;
        if nix::unistd::geteuid().is_root() {
            sys::terminal::give_to(&slave, Uid::from_raw(self.user.uid))?;
        }
        let input = Input::Terminal(Arc::new(terminal), Mutex::default());
        let ours = Ours { input, outputs: Outputs::terminal(reader) };
        Ok(([slave.try_clone()?, slave.try_clone()?, slave], ours))
    }

    fn program(&self, leaf: Option<&Leaf>, streams: [OwnedFd; 3]) -> io::Result<Program> {
        let User { uid, gid, groups, .. } = &self.user;
        let text = |text: &OsStr| CString::new(text.as_bytes());
        let args = [&self.command.program].into_iter().chain(&self.command.args);
        let envs = self.envs.iter().map(|(name, value)| CString::new([name.as_bytes(), value.as_bytes()].join(&b'=')));
        let paths = self.command.candidates(self.path());
        // An agent that is not root, as in a test, stays who it is.
        let groups = nix::unistd::geteuid().is_root().then(|| groups.iter().copied().map(Gid::from_raw).collect());
        Ok(Program {
            paths: paths.iter().map(|path| text(path.as_os_str())).collect::<Result<_, _>>()?,
            args: args.map(|arg| text(arg)).collect::<Result<_, _>>()?,
            envs: envs.collect::<Result<_, _>>()?,
            cwd: text(self.cwd.as_os_str())?,
            else_in_root: self.else_in_root,
            uid: Uid::from_raw(*uid),
            gid: Gid::from_raw(*gid),
            groups,
            control_group: leaf.map(Leaf::opened).transpose()?,
            streams,
            at_terminal: matches!(self.streams, Streams::Terminal(_)),
        })
    }
}

/// The shell that clients name, wrenn's and E2B's. An image that lacks it has the other one run their lines.
const BASH: &str = "/bin/bash";
const SH: &str = "/bin/sh";

/// The agent's ends of a process's streams.
struct Ours {
    input: Input,
    outputs: Outputs,
}

/// `/dev/null`, which is looked up once.
fn nothing() -> io::Result<OwnedFd> {
    static NOTHING: OnceLock<File> = OnceLock::new();
    let opened = match NOTHING.get() {
        Some(opened) => opened,
        None => NOTHING.get_or_init({
            let file = File::open("/dev/null")?;
            || file
        }),
    };
    Ok(opened.try_clone()?.into())
}

/// The group of a process that has not begun. It is given back unless the process begins.
struct RetireOnDrop<'a> {
    leaf: Option<Leaf>,
    groups: &'a Groups,
}

impl RetireOnDrop<'_> {
    fn keep(mut self) -> Option<Leaf> {
        self.leaf.take()
    }
}

impl Drop for RetireOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(leaf) = &self.leaf {
            self.groups.retire(leaf);
        }
    }
}

/// Makes a process that has begun known.
fn launched(begun: Begun, ours: Ours, launch: Launch, leaf: Option<Leaf>, table: &Table) -> Launched {
    let took = begun.took;
    let process = Arc::new(Process {
        pid: begun.pid,
        config: launch.config,
        tag: launch.tag,
        input: ours.input,
        journal: Journal::new(table.budget()),
        leaf,
        timed_out: AtomicBool::new(false),
        ended: watch::Sender::new(false),
        was_asked: AtomicBool::new(false),
    });
    table.insert(process.clone());
    Launched { process, outputs: ours.outputs, exit: begun.take(), took }
}
