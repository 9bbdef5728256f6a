//! A process from the request to its first instruction.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use nix::unistd::{Gid, Uid};
use tokio::{
    net::unix::pipe,
    sync::{Mutex, oneshot},
};

use super::{
    input::Input,
    journal::Journal,
    output::Outputs,
    running::Process,
    table::Table,
    terminal::{Size, Terminal},
};
use crate::{
    agent::{
        cgroups::{Groups, Kind, Leaf},
        environment::{self, VariableError},
        freezer::Freezer,
        settings::Settings,
        sys::{self, Program},
        users::User,
    },
    proto::process::ProcessConfig,
};

/// A process that can be started: its program is found, its directory exists, its user is known.
#[derive(Debug)]
pub(super) struct Launch {
    program: PathBuf,
    config: ProcessConfig,
    tag: Option<String>,
    envs: Environment,
    cwd: PathBuf,
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
    #[error("the guest is frozen")]
    Frozen,
    #[error("the working directory {0:?} is missing, or is no directory")]
    NoDirectory(PathBuf),
    #[error("the command {command:?} is not in PATH={path}")]
    NotInPath { command: String, path: String },
    #[error("the command {0:?} is missing, or cannot be executed")]
    NoProgram(PathBuf),
    #[error("no command is named: `cmd` is empty")]
    NoCommand,
    #[error("{0} holds a NUL, which no program can be given")]
    Nul(String),
    #[error(transparent)]
    Variable(#[from] VariableError),
    #[error("the command {0:?} cannot be executed")]
    Spawn(PathBuf, #[source] io::Error),
    #[error("no terminal can be opened")]
    Terminal(#[source] io::Error),
    #[error("no control group can be made")]
    Group(#[source] io::Error),
}

impl Launch {
    /// Finds everything that `config` names.
    pub(super) fn prepare(
        config: ProcessConfig,
        tag: Option<String>,
        streams: Streams,
        user: User,
        settings: &Settings,
    ) -> Result<Self, LaunchError> {
        refuse_malformed(&config)?;
        let envs = environment_of(&user, settings, &config, streams);
        let cwd = working_directory(&user, settings, config.cwd.as_deref())?;
        let path = envs.get("PATH").map_or("", String::as_str);
        let program = find_program(&config.cmd, &cwd, path)?;
        Ok(Self { program, config, tag, envs, cwd, user, streams })
    }

    /// Starts it. It runs until it ends; nobody need read from it.
    pub(super) fn spawn(self, table: &Table, groups: &Groups, freezer: &Freezer) -> Result<Launched, LaunchError> {
        if freezer.is_frozen() {
            return Err(LaunchError::Frozen);
        }
        let kind = if matches!(self.streams, Streams::Terminal(_)) { Kind::Pty } else { Kind::User };
        let leaf = groups.leaf(kind).map_err(LaunchError::Group)?;
        let started = self.spawn_in(leaf.as_ref(), table);
        match (started, leaf) {
            (Ok(started), leaf) => Ok(started.launched(self, leaf, table)),
            (Err(error), leaf) => {
                if let Some(leaf) = leaf {
                    groups.retire(&leaf);
                }
                Err(error)
            }
        }
    }

    fn spawn_in(&self, leaf: Option<&Leaf>, table: &Table) -> Result<Started, LaunchError> {
        // That a program is there is not asked of each, but of one that does not start.
        let failed = |error| match is_program(&self.program) {
            true => LaunchError::Spawn(self.program.clone(), error),
            false => LaunchError::NoProgram(self.program.clone()),
        };
        let (streams, ours) = match self.streams {
            Streams::Terminal(size) => self.terminal(size).map_err(LaunchError::Terminal)?,
            Streams::Pipes => pipes(true).map_err(failed)?,
            Streams::OutputPipes => pipes(false).map_err(failed)?,
        };
        let program = self.program(leaf, streams).map_err(failed)?;
        let began = Instant::now();
        let (pid, exit) = table.spawn(&program).map_err(failed)?;
        Ok(Started { pid, ours, exit, took: began.elapsed() })
    }

    fn terminal(&self, size: Size) -> io::Result<([OwnedFd; 3], Ours)> {
        let (terminal, slave) = Terminal::open(size)?;
        if nix::unistd::geteuid().is_root() {
            sys::terminal::give_to(&slave, Uid::from_raw(self.user.uid))?;
        }
        let terminal = Arc::new(terminal);
        let ours =
            Ours { input: Input::Terminal(terminal.clone(), Mutex::default()), outputs: Outputs::terminal(terminal) };
        Ok(([slave.try_clone()?, slave.try_clone()?, slave], ours))
    }

    fn program(&self, leaf: Option<&Leaf>, streams: [OwnedFd; 3]) -> io::Result<Program> {
        let User { uid, gid, groups, .. } = &self.user;
        let args = [&self.config.cmd].into_iter().chain(&self.config.args);
        let envs = self.envs.iter().map(|(name, value)| CString::new(format!("{name}={value}")));
        // An agent that is not root, as in a test, stays who it is.
        let groups = nix::unistd::geteuid().is_root().then(|| groups.iter().copied().map(Gid::from_raw).collect());
        Ok(Program {
            path: CString::new(self.program.as_os_str().as_bytes())?,
            args: args.map(|text| CString::new(text.as_str())).collect::<Result<_, _>>()?,
            envs: envs.collect::<Result<_, _>>()?,
            cwd: CString::new(self.cwd.as_os_str().as_bytes())?,
            uid: Uid::from_raw(*uid),
            gid: Gid::from_raw(*gid),
            groups,
            control_group: leaf.map(Leaf::opened).transpose()?,
            streams,
            at_terminal: matches!(self.streams, Streams::Terminal(_)),
        })
    }
}

/// The agent's ends of a process's streams.
struct Ours {
    input: Input,
    outputs: Outputs,
}

/// The process's ends, and the agent's.
fn pipes(has_input: bool) -> io::Result<([OwnedFd; 3], Ours)> {
    let (stdin, input) = if has_input {
        let (theirs, ours) = io::pipe()?;
        (theirs.into(), Input::Pipe(Mutex::new(Some(pipe::Sender::from_owned_fd(ours.into())?))))
    } else {
        (nothing()?, Input::Null)
    };
    let ((stdout, their_stdout), (stderr, their_stderr)) = (io::pipe()?, io::pipe()?);
    let outputs = Outputs::pipes(stdout, stderr)?;
    Ok(([stdin, their_stdout.into(), their_stderr.into()], Ours { input, outputs }))
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

/// A process that runs already, and that nobody knows yet.
struct Started {
    pid: u32,
    ours: Ours,
    exit: oneshot::Receiver<ExitStatus>,
    took: Duration,
}

impl Started {
    fn launched(self, launch: Launch, leaf: Option<Leaf>, table: &Table) -> Launched {
        let process = Arc::new(Process {
            pid: self.pid,
            config: launch.config,
            tag: launch.tag,
            input: self.ours.input,
            journal: Journal::new(table.budget()),
            leaf,
            timed_out: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        table.insert(process.clone());
        Launched { process, outputs: self.ours.outputs, exit: self.exit, took: self.took }
    }
}

/// Refuses what the kernel has no way to take.
fn refuse_malformed(config: &ProcessConfig) -> Result<(), LaunchError> {
    if config.cmd.is_empty() {
        return Err(LaunchError::NoCommand);
    }
    let args = config.args.iter().zip(1..).map(|(arg, number)| (format!("argument {number}"), arg));
    let cwd = config.cwd.iter().map(|cwd| ("the working directory".to_owned(), cwd));
    let mut texts = [("the command".to_owned(), &config.cmd)].into_iter().chain(args).chain(cwd);
    if let Some((what, _)) = texts.find(|(_, text)| text.contains('\0')) {
        return Err(LaunchError::Nul(what));
    }
    Ok(environment::check(&config.envs)?)
}

type Environment = BTreeMap<String, String>;

/// PATH, HOME, USER and LOGNAME, and TERM at a terminal; then the sandbox's, then the request's.
fn environment_of(user: &User, settings: &Settings, config: &ProcessConfig, streams: Streams) -> Environment {
    let own = [
        ("PATH", DEFAULT_PATH.to_owned()),
        ("HOME", user.home.to_string_lossy().into_owned()),
        ("USER", user.name.clone()),
        ("LOGNAME", user.name.clone()),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
    let sandbox = settings.environment();
    let request = config.envs.iter().map(|(name, value)| (name.clone(), value.clone()));
    let term = matches!(streams, Streams::Terminal(_)).then(|| ("TERM".to_owned(), "xterm-256color".to_owned()));
    own.chain(term).chain(sandbox).chain(request).collect()
}

fn working_directory(user: &User, settings: &Settings, asked: Option<&str>) -> Result<PathBuf, LaunchError> {
    let named = asked.filter(|cwd| !cwd.is_empty()).or(settings.default_workdir.as_deref());
    let directory = named.map_or_else(|| user.home.clone(), |cwd| user.resolve(cwd, &user.home));
    match directory.is_dir() {
        true => Ok(directory),
        // A service's user often has no home.
        false if named.is_none() => Ok(PathBuf::from("/")),
        false => Err(LaunchError::NoDirectory(directory)),
    }
}

/// What `exec` would find. Only what has to be looked up is known to be there.
fn find_program(command: &str, cwd: &Path, path: &str) -> Result<PathBuf, LaunchError> {
    if command.contains('/') {
        return Ok(cwd.join(command));
    }
    path.split(':')
        .map(|directory| cwd.join(directory).join(command))
        .find(|candidate| is_program(candidate))
        .ok_or_else(|| LaunchError::NotInPath { command: command.to_owned(), path: path.to_owned() })
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User { name: "user".into(), uid: 1000, gid: 1000, groups: vec![1000], home: PathBuf::from("/nonexistent-home") }
    }

    fn settings(text: &str) -> Settings {
        let mut settings = Settings::default();
        settings.replace(serde_json::from_str(text).unwrap());
        settings
    }

    #[test]
    fn the_requests_environment_wins() {
        let settings = settings(r#"{"envVars":{"A":"sandbox","B":"sandbox","HOME":"/h"}}"#);
        let config =
            ProcessConfig { envs: [("B".into(), "request".into())].into_iter().collect(), ..Default::default() };
        let envs = environment_of(&user(), &settings, &config, Streams::Pipes);
        let value = |name: &str| envs.get(name).map(String::as_str);
        assert_eq!((value("A"), value("B")), (Some("sandbox"), Some("request")));
        assert_eq!((value("HOME"), value("USER"), value("LOGNAME")), (Some("/h"), Some("user"), Some("user")));
    }

    #[test]
    fn a_missing_directory_is_named_unless_it_is_only_the_home() {
        assert_eq!(working_directory(&user(), &Settings::default(), None).unwrap(), Path::new("/"));
        let error = working_directory(&user(), &Settings::default(), Some("~/x")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent-home/x"), "{error}");
        assert_eq!(
            working_directory(&user(), &settings(r#"{"defaultWorkdir":"/usr"}"#), None).unwrap(),
            Path::new("/usr")
        );
    }

    #[test]
    fn a_missing_command_is_named_with_the_path() {
        assert_eq!(find_program("sh", Path::new("/"), "/nowhere:/bin").unwrap(), Path::new("/bin/sh"));
        let error = find_program("no-such-command", Path::new("/"), "/nowhere:/bin").unwrap_err().to_string();
        assert!(error.contains("no-such-command") && error.contains("/nowhere:/bin"), "{error}");
        assert!(find_program("passwd", Path::new("/"), "/etc").is_err(), "not executable");
        assert_eq!(find_program("./sh", Path::new("/bin"), "").unwrap(), Path::new("/bin/./sh"));
    }
}
