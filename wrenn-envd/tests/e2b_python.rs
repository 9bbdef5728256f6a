//! E2B's Python client, as it is published, finds its agent. Its tests are in `e2b_python/`.

mod e2b_client;

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
};

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
    let python = match e2b_client::python() {
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
    e2b_client::enter_own_network();
    let _agent = Agent::start();
    e2b_client::tests(python, file, None).output().expect("python runs")
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
