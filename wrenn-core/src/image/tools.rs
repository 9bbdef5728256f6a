//! The host's programs: which are needed, where they are, and how they are run.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::image::error::ImageError;
use crate::program::find_in_path;

/// A program or file of the host that wrenn uses, as [`requirements`] lists it.
///
/// ```
/// use wrenn_core::image::{Purpose, requirements};
///
/// let qemu = requirements().into_iter().find(|requirement| requirement.purpose == Purpose::Qemu);
/// assert!(qemu.is_some_and(|qemu| qemu.package.starts_with("qemu")));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Requirement {
    /// The program's name, or a file's absolute path.
    pub program: &'static str,
    /// The Debian and Ubuntu package that has the program.
    pub package: &'static str,
    /// What wrenn uses the program for.
    pub purpose: Purpose,
    /// The program's path on this host; `None` where it is missing.
    pub found: Option<PathBuf>,
}

/// What wrenn uses a [`Requirement`] for.
///
/// ```
/// use wrenn_core::image::{Purpose, requirements};
///
/// let can_build = requirements().iter().all(|needed| needed.purpose != Purpose::Image || needed.found.is_some());
/// println!("images can be built here: {can_build}");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// To build an image.
    Image,
    /// To run sandboxes on the `qemu` driver.
    Qemu,
}

/// Lists every program and file that wrenn uses from the host's packages, and where it is on this host.
///
/// ```
/// for missing in wrenn_core::image::requirements().iter().filter(|requirement| requirement.found.is_none()) {
///     println!("apt-get install {}", missing.package);
/// }
/// ```
#[must_use]
pub fn requirements() -> Vec<Requirement> {
    let of_users = OF_USERS.iter().filter(|_| !is_root());
    REQUIREMENTS
        .iter()
        .chain(of_users)
        .map(|&(program, package, purpose)| Requirement { program, package, purpose, found: find(program) })
        .collect()
}

/// Fails with the first of `programs` that the host lacks.
pub(super) fn require(programs: &[&'static str]) -> Result<(), ImageError> {
    programs.iter().try_for_each(|program| locate(program).map(drop))
}

pub(super) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// One run of a host program. Its arguments never pass a shell.
#[derive(Debug)]
pub(super) struct Tool {
    program: &'static str,
    /// What starts it, where it is not started as it is.
    starter: Option<&'static str>,
    args: Vec<OsString>,
    directory: Option<PathBuf>,
}

impl Tool {
    pub(super) fn new(program: &'static str) -> Self {
        Self { program, starter: None, args: Vec::new(), directory: None }
    }

    /// The same program as root: for a user who is not, in a user namespace where the user is root and has the user's
    /// subordinate ids, with mounts and processes of its own.
    pub(super) fn as_root(program: &'static str) -> Self {
        if is_root() {
            return Self::new(program);
        }
        let tool = Self { starter: Some(UNSHARE), ..Self::new(program) };
        tool.args(AS_ROOT).arg("--").arg(program)
    }

    pub(super) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(super) fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// The directory that it runs in.
    pub(super) fn in_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// The path of what is started, and its arguments, for work that blocks.
    pub(super) fn into_parts(self) -> Result<(PathBuf, Vec<OsString>), ImageError> {
        locate(self.program)?;
        Ok((locate(self.starter.unwrap_or(self.program))?, self.args))
    }

    /// Runs the program to its end; `line` gets each line of its standard error.
    ///
    /// # Cancel-Safety
    ///
    /// Dropping the future kills the program and what it started.
    pub(super) async fn run(self, mut line: impl FnMut(&str) + Send) -> Result<(), ImageError> {
        self.spawn(Stdio::null(), &mut line).await.map(drop)
    }

    /// Runs the program to its end and returns its standard output.
    ///
    /// # Cancel-Safety
    ///
    /// As [`run`](Self::run).
    pub(super) async fn output(self) -> Result<String, ImageError> {
        self.spawn(Stdio::piped(), &mut |_: &str| {}).await
    }

    async fn spawn(self, stdout: Stdio, line: &mut (dyn FnMut(&str) + Send)) -> Result<String, ImageError> {
        let (program, directory) = (self.program, self.directory.clone().unwrap_or_else(|| PathBuf::from("/")));
        let (path, args) = self.into_parts()?;
        let io = |source| ImageError::Io { action: "run", path: path.clone(), source };
        let mut child = Command::new(&path)
            .args(&args)
            .current_dir(directory)
            .env("LC_ALL", "C")
            .env("PATH", search_path())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(io)?;
        let group = Group::of(&child);
        let mut output = Vec::new();
        let mut tail = VecDeque::new();
        let collect = async {
            match child.stdout.take() {
                Some(mut stdout) => stdout.read_to_end(&mut output).await.map(drop),
                None => Ok(()),
            }
        };
        let follow = async {
            let Some(stderr) = child.stderr.take() else {
                return Ok(());
            };
            let mut lines = BufReader::new(stderr).split(b'\n');
            while let Some(bytes) = lines.next_segment().await? {
                let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                line(&text);
                if tail.len() == STDERR_LINES_MAX {
                    tail.pop_front();
                }
                tail.push_back(text);
            }
            Ok(())
        };
        tokio::try_join!(collect, follow).map_err(io)?;
        let status = child.wait().await.map_err(io)?;
        group.ended();
        if !status.success() {
            return Err(ImageError::Tool { program, status, stderr: Vec::from(tail).join("\n") });
        }
        Ok(String::from_utf8_lossy(&output).into_owned())
    }
}

/// A program's process group, killed on drop: mmdebstrap's children would outlive it.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.map(Pid::from_raw))
    }

    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself just now.
            killpg(group, Signal::SIGKILL).ok();
        }
    }
}

fn locate(program: &str) -> Result<PathBuf, ImageError> {
    let known = REQUIREMENTS.iter().chain(&OF_USERS).find(|known| known.0 == program);
    let &(program, package, _) = known.unwrap_or(&("this program", "it", Purpose::Image));
    find(program).ok_or(ImageError::MissingTool { program, package })
}

fn find(program: &str) -> Option<PathBuf> {
    find_in_path(&search_path(), program)
}

/// `PATH` with the system directories that an ordinary user's lacks.
fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .filter(|directory| directory.is_absolute());
    env::join_paths(directories).unwrap_or(path)
}

/// The keys that Debian's archive is checked against; on Debian itself always there.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const REQUIREMENTS: &[(&str, &str, Purpose)] = &[
    ("mmdebstrap", "mmdebstrap", Purpose::Image),
    ("apt-get", "apt", Purpose::Image),
    ("apt-cache", "apt", Purpose::Image),
    ("find", "findutils", Purpose::Image),
    ("rm", "coreutils", Purpose::Image),
    ("chroot", "coreutils", Purpose::Image),
    ("dpkg-deb", "dpkg", Purpose::Image),
    ("dpkg-query", "dpkg", Purpose::Image),
    ("mke2fs", "e2fsprogs", Purpose::Image),
    (KEYRING, "debian-archive-keyring", Purpose::Image),
    ("qemu-system-x86_64", "qemu-system-x86", Purpose::Qemu),
];

/// What it takes besides to build an image as somebody who is not root.
const OF_USERS: [(&str, &str, Purpose); 2] =
    [(UNSHARE, "util-linux", Purpose::Image), (NEWUIDMAP, "uidmap", Purpose::Image)];
pub(super) const UNSHARE: &str = "unshare";
pub(super) const NEWUIDMAP: &str = "newuidmap";
/// `--map-auto` came with util-linux 2.38.
const AS_ROOT: [&str; 8] =
    ["--user", "--map-root-user", "--map-auto", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const STDERR_LINES_MAX: usize = 20;
