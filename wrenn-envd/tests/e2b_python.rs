//! E2B's Python client, as it is published, finds its agent.
//!
//! The tests are in `e2b_python/`. The client's debug mode knows one address, so that each file of them has a network of its
//! own, with an agent of its own in it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    thread,
};

use nix::sched::{CloneFlags, unshare};
use wrenn_envd::AGENT_PORT;

#[test]
fn commands_run_as_e2bs_client_expects() {
    run("commands_run_as_e2bs_client_expects", "test_commands.py");
}

#[test]
fn files_are_what_e2bs_client_expects() {
    run("files_are_what_e2bs_client_expects", "test_files.py");
}

#[test]
fn terminals_behave_as_e2bs_client_expects() {
    run("terminals_behave_as_e2bs_client_expects", "test_pty.py");
}

#[test]
fn watches_tell_what_e2bs_client_expects() {
    run("watches_tell_what_e2bs_client_expects", "test_watch.py");
}

#[expect(clippy::print_stdout, reason = "what is skipped is reported by the runner")]
fn run(test: &str, file: &str) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: {test}: no root, which a network of its own takes");
        return;
    }
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return println!("skipped: {test}: {reason}"),
    };
    // What a thread starts is where the thread is.
    let ran = thread::scope(|scope| scope.spawn(|| run_in_own_network(python, file)).join().expect("it ran"));
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    println!("{said}");
}

fn run_in_own_network(python: &Path, file: &str) -> Output {
    unshare(CloneFlags::CLONE_NEWNET).expect("root may");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("`ip` is there: install iproute2").success());
    let _agent = Agent::start();
    Command::new(python)
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", file])
        .current_dir(sources())
        .env("E2B_DEBUG", "true")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python runs")
}

/// An agent where the client looks for one, which ends with the test.
struct Agent(Child);

impl Agent {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn-envd"));
        command.args(["--no-init", "--address", "127.0.0.1", "--port", &AGENT_PORT.to_string()]);
        let mut agent = Self(command.stderr(Stdio::piped()).spawn().expect("the agent starts"));
        let stderr = agent.0.stderr.take().expect("its stderr is piped");
        let mut lines = BufReader::new(stderr).lines();
        assert!(lines.any(|line| line.expect("text").contains("serving on")));
        // Who reads no longer must not stop the agent from speaking.
        thread::spawn(move || lines.for_each(drop));
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2b_python")
}

/// The Python that has the client, or why there is none.
fn python() -> Result<&'static Path, &'static str> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PYTHON.get_or_init(prepare).as_deref().map_err(String::as_str)
}

/// Makes the environment once for each list of requirements: it gets its name when it is whole.
fn prepare() -> Result<PathBuf, String> {
    let requirements = sources().join("requirements.txt");
    let list = fs::read(&requirements).expect("the list is in the repository");
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2b-python");
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
        .arg(&requirements)
        .output()
        .expect("the environment has pip");
    let said = String::from_utf8_lossy(&install.stderr).into_owned();
    if !install.status.success() {
        let is_offline = ["name resolution", "establish a new connection", "Network is unreachable", "timed out"]
            .iter()
            .any(|reason| said.contains(reason));
        assert!(is_offline, "pip could not install the client:\n{said}");
        return Err("no network to install E2B's client by".to_owned());
    }
    fs::write(place.join("whole"), list).expect("the environment can be marked");
    Ok(python)
}
