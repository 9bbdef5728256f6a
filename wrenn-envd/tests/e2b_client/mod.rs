//! E2B's Python client as it is published, and its tests in `e2b_python/`, for an agent wherever that runs.
//!
//! The client's debug mode knows one address, so that each run has a network of its own.

#![allow(dead_code, reason = "each crate's tests use a part")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use nix::sched::{CloneFlags, unshare};

/// Gives the calling thread, and what it starts from then on, a network that is empty but for a loopback.
pub(crate) fn enter_own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("root may");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("`ip` is there: install iproute2").success());
}

/// The tests of a file, against the agent on `localhost:49983`; `token` is what that agent asks for.
pub(crate) fn tests(python: &Path, file: &str, token: Option<&str>) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", file]).current_dir(sources());
    command.env("E2B_DEBUG", "true").env("PYTHONDONTWRITEBYTECODE", "1").env_remove("WRENN_ACCESS_TOKEN");
    if let Some(token) = token {
        command.env("WRENN_ACCESS_TOKEN", token);
    }
    command
}

/// The Python that has the client, or why there is none.
pub(crate) fn python() -> Result<&'static Path, &'static str> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if !nix::unistd::geteuid().is_root() {
        return Err("no root, which a network of its own takes");
    }
    let newest = || environment(&sources().join("requirements.txt"), "e2b-python");
    PYTHON.get_or_init(newest).as_deref().map_err(String::as_str)
}

/// The Python of an environment that has what a list of requirements names, or why there is none. It is made once, and gets
/// its name when it is whole.
pub(crate) fn environment(requirements: &Path, name: &str) -> Result<PathBuf, String> {
    let list = fs::read(requirements).expect("the list is in the repository");
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let python = place.join("bin/python");
    if fs::read(place.join("whole")).is_ok_and(|whole| whole == list) {
        return Ok(python);
    }
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place).output();
    let made = made.map_err(|error| format!("no python3: {error}; install python3 and python3-venv"))?;
    if !made.status.success() {
        return Err("python3 makes no virtual environment; install python3-venv".to_owned());
    }
    let install = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--requirement"])
        .arg(requirements)
        .output()
        .expect("the environment has pip");
    let said = String::from_utf8_lossy(&install.stderr).into_owned();
    if !install.status.success() {
        let is_offline = ["name resolution", "establish a new connection", "Network is unreachable", "timed out"]
            .iter()
            .any(|reason| said.contains(reason));
        assert!(is_offline, "pip could not install it:\n{said}");
        return Err("no network to install it from PyPI by".to_owned());
    }
    fs::write(place.join("whole"), list).expect("the environment can be marked");
    Ok(python)
}

/// Where the tests of the agent are, and the list of what they need.
pub(crate) fn sources() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../wrenn-envd/tests/e2b_python")).to_owned()
}
