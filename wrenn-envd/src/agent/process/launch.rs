use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, atomic::AtomicBool},
};

use nix::unistd::{Gid, Uid};
use tokio::{
    net::unix::pipe,
    sync::{Mutex, oneshot},
};

use super::{Fanout, Pipes, Process, Table};
use crate::{
    agent::{freezer::Freezer, settings::Settings, sys, users::User},
    proto::process::ProcessConfig,
};

/// A process that can be started: its program is found, its directory exists, its user is known.
#[derive(Debug)]
pub(super) struct Launch {
    program: PathBuf,
    config: ProcessConfig,
    tag: Option<String>,
    envs: Vec<(String, String)>,
    cwd: PathBuf,
    user: User,
    stdin: Stdin,
    members: Option<Arc<File>>,
}

/// Whether a process has something to read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stdin {
    Pipe,
    Null,
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
    #[error("the command {0:?}, its arguments and its environment may not be empty or hold a NUL")]
    Malformed(String),
    #[error("the command {0:?} cannot be executed")]
    Spawn(PathBuf, #[source] io::Error),
}

impl Launch {
    /// Finds everything that `config` names.
    pub(super) fn prepare(
        config: ProcessConfig,
        tag: Option<String>,
        stdin: Stdin,
        user: User,
        settings: &Settings,
        freezer: &Freezer,
    ) -> Result<Self, LaunchError> {
        if freezer.is_frozen() {
            return Err(LaunchError::Frozen);
        }
        let texts = [&config.cmd].into_iter().chain(&config.args).chain(config.envs.keys()).chain(config.envs.values());
        if config.cmd.is_empty() || texts.into_iter().any(|text| text.contains('\0')) || config.envs.contains_key("") {
            return Err(LaunchError::Malformed(config.cmd.clone()));
        }
        let envs = environment(&user, settings, &config);
        let cwd = working_directory(&user, settings, config.cwd.as_deref())?;
        let path = envs.iter().rev().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value.as_str());
        let program = find_program(&config.cmd, &cwd, path)?;
        Ok(Self { program, config, tag, envs, cwd, user, stdin, members: freezer.members() })
    }

    /// Starts it. It runs until it ends; nobody need read from it.
    pub(super) fn spawn(
        self,
        table: &Table,
    ) -> Result<(Arc<Process>, Pipes, oneshot::Receiver<std::process::ExitStatus>), LaunchError> {
        let failed = |error| LaunchError::Spawn(self.program.clone(), error);
        let mut command = Command::new(&self.program);
        command.arg0(&self.config.cmd).args(&self.config.args).env_clear();
        command.envs(self.envs.iter().map(|(name, value)| (name, value)));
        command.stdin(if self.stdin == Stdin::Pipe { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::become_user(&mut command, becoming(&self.user, &self.cwd, self.members.clone()).map_err(failed)?);

        let (mut child, exit) = table.spawn(&mut command).map_err(failed)?;
        let missing = || failed(io::ErrorKind::BrokenPipe.into());
        let stdout = pipe::Receiver::from_owned_fd(child.stdout.take().ok_or_else(missing)?.into()).map_err(failed)?;
        let stderr = pipe::Receiver::from_owned_fd(child.stderr.take().ok_or_else(missing)?.into()).map_err(failed)?;
        let stdin =
            child.stdin.take().map(|stdin| pipe::Sender::from_owned_fd(stdin.into())).transpose().map_err(failed)?;
        let process = Arc::new(Process {
            pid: child.id(),
            config: self.config,
            tag: self.tag,
            stdin: Mutex::new(stdin),
            fanout: Fanout::new(),
            timed_out: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        table.insert(process.clone());
        Ok((process, Pipes { stdout, stderr }, exit))
    }
}

/// PATH, HOME, USER and LOGNAME, then the sandbox's, then the request's.
fn environment(user: &User, settings: &Settings, config: &ProcessConfig) -> Vec<(String, String)> {
    let own = [
        ("PATH", DEFAULT_PATH.to_owned()),
        ("HOME", user.home.to_string_lossy().into_owned()),
        ("USER", user.name.clone()),
        ("LOGNAME", user.name.clone()),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
    let sandbox = settings.envs.iter().map(|(name, value)| (name.clone(), value.clone()));
    let request = config.envs.iter().map(|(name, value)| (name.clone(), value.clone()));
    own.chain(sandbox).chain(request).collect()
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

/// What `exec` would find, so that what is missing can be named.
fn find_program(command: &str, cwd: &Path, path: &str) -> Result<PathBuf, LaunchError> {
    let is_program = |candidate: &Path| {
        fs::metadata(candidate).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if command.contains('/') {
        let program = cwd.join(command);
        return if is_program(&program) { Ok(program) } else { Err(LaunchError::NoProgram(program)) };
    }
    path.split(':')
        .map(|directory| cwd.join(directory).join(command))
        .find(|candidate| is_program(candidate))
        .ok_or_else(|| LaunchError::NotInPath { command: command.to_owned(), path: path.to_owned() })
}

fn becoming(user: &User, cwd: &Path, members: Option<Arc<File>>) -> io::Result<sys::Becoming> {
    // An agent that is not root, as in a test, stays who it is.
    let groups = nix::unistd::geteuid().is_root().then(|| user.groups.iter().copied().map(Gid::from_raw).collect());
    let cwd = CString::new(cwd.as_os_str().as_bytes())?;
    Ok(sys::Becoming { cwd, members, uid: Uid::from_raw(user.uid), gid: Gid::from_raw(user.gid), groups })
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
        let envs = environment(&user(), &settings, &config);
        let value = |name: &str| envs.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
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
        assert!(find_program("./passwd", Path::new("/etc"), "").is_err(), "not executable");
    }
}
