//! A PostgreSQL server of a test's own, as Debian has it.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each file uses a part")]

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

/// A server that runs, and that ends when this is dropped. It listens on a socket of its directory alone.
pub(crate) struct Server {
    directory: tempfile::TempDir,
    programs: PathBuf,
    child: Child,
}

impl Server {
    /// Starts one, or says why there is none.
    pub(crate) fn start() -> Result<Self, String> {
        let programs = programs().ok_or("no PostgreSQL: install Debian's package postgresql")?;
        let directory = tempfile::Builder::new().prefix("wrenn-test-").tempdir().unwrap();
        if let Some(user) = user() {
            chown(directory.path(), Some(user.0), Some(user.1)).unwrap();
        }
        let made = as_user(&programs.join("initdb"))
            .args(["--auth", "trust", "--username", "wrenn", "--no-sync", "--encoding", "UTF8", "--pgdata"])
            .arg(directory.path().join("data"))
            .current_dir("/")
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let child = run(&programs, directory.path());
        let server = Self { directory, programs, child };
        server.wait();
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        let path = self.directory.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://wrenn@{path}/postgres")
    }

    /// Ends it as a want of memory would.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGQUIT);
        self.child.wait().unwrap();
    }

    /// Starts it again with what it has.
    pub(crate) fn restart(&mut self) {
        self.child = run(&self.programs, self.directory.path());
        self.wait();
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let ready = || {
            let mut command = Command::new(self.programs.join("pg_isready"));
            command.arg("--quiet").arg("--host").arg(self.directory.path());
            command.args(["--username", "wrenn", "--dbname", "postgres"]).status().unwrap().success()
        };
        while !ready() {
            assert!(Instant::now() < deadline, "PostgreSQL does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::SIGQUIT);
        }
        self.child.wait().ok();
    }
}

fn run(programs: &Path, directory: &Path) -> Child {
    as_user(&programs.join("postgres"))
        .arg("-D")
        .arg(directory.join("data"))
        .arg("-k")
        .arg(directory)
        .args(["-h", "", "-c", "fsync=off", "-c", "logging_collector=off"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()
        .unwrap()
}

/// Root may not run it.
fn user() -> Option<(u32, u32)> {
    if !geteuid().is_root() {
        return None;
    }
    let user = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).unwrap());
    user.map(|user| (user.uid.as_raw(), user.gid.as_raw()))
}

fn as_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// The newest version's; Debian has them outside of `PATH`.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|entry| entry.path().join("bin"));
    versions.filter(|programs| programs.join("initdb").exists() && programs.join("postgres").exists()).max()
}
