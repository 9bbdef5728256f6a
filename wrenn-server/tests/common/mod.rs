//! The server's own binary, as an operator starts it, and a client of its API.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each file uses a part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use wrenn_core::Host;

/// Whether the test can run: where no VM can, it is skipped by name.
pub(crate) fn can_run(test: &str) -> bool {
    let reason = if std::env::var_os("WRENN_TEST_VM").is_some_and(|value| value == "0") {
        "WRENN_TEST_VM is 0".to_owned()
    } else {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        match runtime.block_on(Host::builder().open()) {
            Ok(_) => return true,
            Err(error) => error.to_string(),
        }
    };
    // Past the runner, which keeps to itself what a test that passes prints.
    writeln!(std::io::stderr(), "skipped: {test}: {reason}").unwrap();
    false
}

/// A data directory of a test's own, with the shared one's images.
pub(crate) fn data_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("wrenn-test-").tempdir().unwrap();
    std::os::unix::fs::symlink(wrenn_core::default_data_dir().join("images"), dir.path().join("images")).unwrap();
    dir
}

pub(crate) fn wrenn_server(data_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn-server"));
    command.arg("--data-dir").arg(data_dir).args(args);
    command
}

pub(crate) fn output(data_dir: &Path, args: &[&str]) -> Output {
    wrenn_server(data_dir, args).output().unwrap()
}

pub(crate) fn new_key(data_dir: &Path, name: &str) -> String {
    let output = output(data_dir, &["keys", "create", name]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A server that runs. It is killed when this is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start(data_dir: &Path, args: &[&str]) -> Self {
        let mut command = wrenn_server(data_dir, &["serve", "--listen", "127.0.0.1:0"]);
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.find_map(|line| line.unwrap().split_once("http://").map(|(_, at)| at.parse().unwrap()));
        // What it says later is nobody's, and has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.expect("it ended before it listened") }
    }

    /// Has it pause what runs, and waits for its end.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it did not end");
    }

    /// Ends it as a want of memory would.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    pub(crate) fn client(&self, key: &str) -> Client {
        Client { address: self.address, key: key.to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Sends requests with a key, one by one.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
}

impl Client {
    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("POST", path, Some(&body.to_string()))
    }

    pub(crate) fn delete(&self, path: &str) -> u16 {
        self.send("DELETE", path, None).0
    }

    /// The status, and the answer's JSON; null where there is none.
    pub(crate) fn send(&self, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
        let headers = body.map_or_else(String::new, |body| {
            format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
        });
        let key = &self.key;
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: test\r\nX-API-Key: {key}\r\nConnection: close\r\n{headers}\r\n");
        self.raw(&[head.as_bytes(), body.unwrap_or_default().as_bytes()].concat())
    }

    /// The same for a request as it is.
    pub(crate) fn raw(&self, request: &[u8]) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        // A server may answer before it has read all.
        stream.write_all(request).ok();
        let mut answer = Vec::new();
        // It may end such a connection by a reset.
        stream.read_to_end(&mut answer).ok();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }
}

/// What a line printed in a sandbox, which has to succeed.
pub(crate) fn run(client: &Client, id: &str, line: &str) -> String {
    let exec = serde_json::json!({"cmd": "/bin/sh", "args": ["-c", line]});
    let (status, answer) = client.post(&format!("/v1/sandboxes/{id}/exec"), &exec);
    assert_eq!((status, answer["exit_code"].as_i64()), (200, Some(0)), "{line}: {answer}");
    answer["stdout"].as_str().unwrap().trim_end().to_owned()
}

/// A new sandbox, by its id.
pub(crate) fn sandbox(client: &Client, wanted: &Value) -> String {
    let (status, answer) = client.post("/v1/sandboxes", wanted);
    assert_eq!((status, answer["status"].as_str()), (201, Some("running")), "{answer}");
    answer["id"].as_str().unwrap().to_owned()
}
