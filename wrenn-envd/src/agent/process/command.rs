//! What a caller asks to be started, in bytes: the kernel's words need not be UTF-8.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use crate::{
    agent::{
        authorities,
        environment::{self, VariableError},
        locale,
        settings::Settings,
        users::User,
    },
    proto::process::ProcessConfig,
};

/// A program with its words, its variables and its directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) program: OsString,
    pub(super) args: Vec<OsString>,
    pub(super) variables: BTreeMap<OsString, OsString>,
    /// Whether `variables` are all that there are.
    pub(super) env_clear: bool,
    /// As the caller writes it; `None` where that names none.
    pub(super) cwd: Option<OsString>,
}

/// A command that the kernel has no way to take.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CommandError {
    #[error("no command is named: `cmd` is empty")]
    Unnamed,
    #[error("{0} holds a NUL, which no program can be given")]
    Nul(String),
    #[error(transparent)]
    Variable(#[from] VariableError),
}

impl Command {
    /// What `config` says; its fields of bytes, where they are there, in the place of those of text.
    pub(super) fn of(config: &ProcessConfig) -> Result<Self, CommandError> {
        let bytes = |bytes: &Vec<u8>| OsString::from_vec(bytes.clone());
        let mut variables: BTreeMap<OsString, OsString> =
            config.envs.iter().map(|(name, value)| (name.into(), value.into())).collect();
        variables.extend(config.env_bytes.iter().map(|variable| (bytes(&variable.name), bytes(&variable.value))));
        let command = Self {
            program: config.cmd_bytes.as_ref().map_or_else(|| config.cmd.clone().into(), bytes),
            args: match config.args_bytes.as_slice() {
                [] => config.args.iter().map(Into::into).collect(),
                args => args.iter().map(bytes).collect(),
            },
            variables,
            env_clear: config.env_clear.unwrap_or(false),
            cwd: config.cwd_bytes.as_ref().map(bytes).or_else(|| config.cwd.as_ref().map(Into::into)),
        };
        command.check()?;
        Ok(command)
    }

    /// `config` for a client that knows its text alone.
    pub(super) fn told(config: &ProcessConfig) -> ProcessConfig {
        let mut told = config.clone();
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        if let Some(bytes) = &config.cmd_bytes {
            told.cmd = text(bytes);
        }
        if let Some(bytes) = &config.cwd_bytes {
            told.cwd = Some(text(bytes));
        }
        if !config.args_bytes.is_empty() {
            told.args = config.args_bytes.iter().map(text).collect();
        }
        told.envs.extend(config.env_bytes.iter().map(|variable| (text(&variable.name), text(&variable.value))));
        told
    }

    fn check(&self) -> Result<(), CommandError> {
        if self.program.is_empty() {
            return Err(CommandError::Unnamed);
        }
        let args = self.args.iter().zip(1..).map(|(arg, number)| (format!("argument {number}"), arg));
        let cwd = self.cwd.iter().map(|cwd| ("the working directory".to_owned(), cwd));
        let mut texts = [("the command".to_owned(), &self.program)].into_iter().chain(args).chain(cwd);
        if let Some((what, _)) = texts.find(|(_, text)| text.as_bytes().contains(&0)) {
            return Err(CommandError::Nul(what));
        }
        Ok(environment::check(&self.variables)?)
    }

    /// PATH, HOME, USER, LOGNAME, the language and where authorities are, and TERM at a terminal; then the sandbox's, then
    /// the caller's. Or the caller's alone, where that asks for it.
    pub(super) fn environment(
        &self,
        user: &User,
        settings: &Settings,
        at_terminal: bool,
    ) -> BTreeMap<OsString, OsString> {
        if self.env_clear {
            return self.variables.clone();
        }
        let own = [
            ("PATH", OsString::from(DEFAULT_PATH)),
            ("HOME", user.home.clone().into()),
            ("USER", user.name.clone().into()),
            ("LOGNAME", user.name.clone().into()),
        ];
        let term = at_terminal.then_some(("TERM", "xterm-256color".into()));
        let own = own.into_iter().chain(term).map(|(name, value)| (name.into(), value));
        let others = locale::variables().into_iter().chain(authorities::variables()).chain(settings.environment());
        let others = others.map(|(name, value)| (name.into(), value.into()));
        own.chain(others).chain(self.variables.clone()).collect()
    }

    /// The directory to start in, as the caller means it, and whether it is only the user's home: a service's user often has
    /// none.
    pub(super) fn directory(&self, user: &User, settings: &Settings) -> (PathBuf, bool) {
        let default = || settings.default_workdir.as_ref().map(OsStr::new);
        match self.cwd.as_deref().filter(|cwd| !cwd.is_empty()).or_else(default) {
            Some(named) => (user.resolve(Path::new(named), &user.home), false),
            None => (user.home.clone(), true),
        }
    }

    /// Where the program may be: itself, or in each directory of `path`. A relative one lies under the directory that the
    /// process starts in.
    pub(super) fn candidates(&self, path: &OsStr) -> Vec<PathBuf> {
        if self.program.as_bytes().contains(&b'/') {
            return vec![PathBuf::from(&self.program)];
        }
        let directories = path.as_bytes().split(|byte| *byte == b':').map(OsStr::from_bytes);
        // An empty one is the present directory; with a slash nothing is looked up again.
        directories
            .map(|directory| Path::new(if directory.is_empty() { OsStr::new(".") } else { directory }))
            .map(|directory| directory.join(&self.program))
            .collect()
    }
}

pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::process::process_config::Variable;

    fn user() -> User {
        User { name: "user".into(), uid: 1000, gid: 1000, groups: vec![1000], home: PathBuf::from("/nonexistent-home") }
    }

    fn settings(text: &str) -> Settings {
        let mut settings = Settings::default();
        settings.replace(serde_json::from_str(text).unwrap());
        settings
    }

    fn command(config: &ProcessConfig) -> Command {
        Command::of(config).unwrap()
    }

    fn sh() -> ProcessConfig {
        ProcessConfig { cmd: "sh".to_owned(), ..Default::default() }
    }

    #[test]
    fn the_callers_environment_wins() {
        let settings = settings(r#"{"envVars":{"A":"sandbox","B":"sandbox","HOME":"/h","LANG":"C"}}"#);
        let config = ProcessConfig { envs: [("B".into(), "caller".into())].into_iter().collect(), ..sh() };
        let envs = command(&config).environment(&user(), &settings, false);
        let value = |name: &str| envs.get(OsStr::new(name)).and_then(|value| value.to_str());
        assert_eq!((value("A"), value("B"), value("LANG")), (Some("sandbox"), Some("caller"), Some("C")));
        assert_eq!((value("HOME"), value("USER"), value("LOGNAME")), (Some("/h"), Some("user"), Some("user")));
        assert_eq!(value("TERM"), None);
        let envs = command(&sh()).environment(&user(), &Settings::default(), true);
        assert!(envs.contains_key(OsStr::new("LANG")) && envs.contains_key(OsStr::new("TERM")));
    }

    #[test]
    fn a_directory_that_is_not_named_is_the_sandboxs_or_the_home() {
        let directory = |cwd: Option<&str>, text| {
            let config = ProcessConfig { cwd: cwd.map(str::to_owned), ..sh() };
            command(&config).directory(&user(), &settings(text))
        };
        assert_eq!(directory(None, "{}"), ("/nonexistent-home".into(), true));
        assert_eq!(directory(Some("~/x"), "{}"), ("/nonexistent-home/x".into(), false));
        assert_eq!(directory(Some(""), r#"{"defaultWorkdir":"/usr"}"#), ("/usr".into(), false));
        assert_eq!(directory(Some("y"), r#"{"defaultWorkdir":"/usr"}"#), ("/nonexistent-home/y".into(), false));
    }

    #[test]
    fn a_program_is_looked_for_where_exec_would() {
        let candidates = |cmd: &str, path: &str| {
            command(&ProcessConfig { cmd: cmd.to_owned(), ..Default::default() }).candidates(OsStr::new(path))
        };
        assert_eq!(candidates("sh", "/a:/b"), [Path::new("/a/sh"), Path::new("/b/sh")]);
        assert_eq!(candidates("sh", ":x"), [Path::new("./sh"), Path::new("x/sh")]);
        assert_eq!(candidates("./sh", "/a"), [Path::new("./sh")]);
    }

    #[test]
    fn bytes_come_before_text() {
        let variable = Variable { name: b"N\xff".to_vec(), value: b"\xfe".to_vec(), ..Default::default() };
        let config = ProcessConfig {
            args: vec!["text".to_owned()],
            cmd_bytes: Some(b"p\xff".to_vec()),
            args_bytes: vec![b"\xff".to_vec()],
            env_bytes: vec![variable],
            cwd_bytes: Some(b"/\xff".to_vec()),
            ..sh()
        };
        let bytes = |text: &'static [u8]| OsStr::from_bytes(text).to_owned();
        let expected = Command {
            program: bytes(b"p\xff"),
            args: vec![bytes(b"\xff")],
            variables: [(bytes(b"N\xff"), bytes(b"\xfe"))].into(),
            env_clear: false,
            cwd: Some(bytes(b"/\xff")),
        };
        assert_eq!(command(&config), expected);
        let told = Command::told(&config);
        assert_eq!((told.cmd.as_str(), told.args.as_slice()), ("p\u{fffd}", &["\u{fffd}".to_owned()][..]));
        assert_eq!(told.cwd.as_deref(), Some("/\u{fffd}"));
        assert_eq!(told.envs.get("N\u{fffd}").map(String::as_str), Some("\u{fffd}"));
        assert_eq!(Command::told(&sh()), sh());
        let bad = |config| Command::of(&config).unwrap_err();
        assert_eq!(bad(ProcessConfig::default()), CommandError::Unnamed);
        assert_eq!(
            bad(ProcessConfig { args_bytes: vec![b"\0".to_vec()], ..sh() }),
            CommandError::Nul("argument 1".into())
        );
        let unnamed = ProcessConfig { env_bytes: vec![Variable::default()], ..sh() };
        assert_eq!(bad(unnamed), CommandError::Variable(VariableError::Unnamed));
    }
}
