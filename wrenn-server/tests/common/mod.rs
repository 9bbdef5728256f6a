//! The server's own binary, as an operator starts it, and a client of its API.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each file uses a part")]

pub(crate) mod stream;

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
    writeln!(std::io::stderr(), "skipped: {test}: {reason}").expect("standard error is open");
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
        Self::start_at(data_dir, "127.0.0.1:0", args)
    }

    pub(crate) fn start_at(data_dir: &Path, listen: &str, args: &[&str]) -> Self {
        let mut command = wrenn_server(data_dir, &["serve", "--listen", listen]);
        command.args(args);
        Self::spawn(command)
    }

    /// Starts one by a command that serves.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.find_map(|line| {
            line.unwrap()
                .split_once("listening on http")
                .map(|(_, at)| at.trim_start_matches('s').trim_start_matches("://").parse().unwrap())
        });
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

    /// The processes that it has started and that are there.
    pub(crate) fn vmms(&self) -> Vec<u32> {
        let is_own = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // After the name in brackets: the state, and the parent.
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
            parent == Some(self.child.id())
        };
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_own).collect()
    }

    /// How much memory it has, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Its resident memory in KiB, and how many descriptors it has.
    pub(crate) fn costs(&self) -> (u64, usize) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count();
        (line.trim().trim_end_matches(" kB").parse().unwrap(), descriptors)
    }

    pub(crate) fn signal(&self, signal: Signal) {
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

    /// As `send`; `None` if there is no server, or it goes away meanwhile.
    pub(crate) fn attempt(&self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let (key, body) = (&self.key, body.to_string());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nX-API-Key: {key}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(120))).ok()?;
        stream.write_all(head.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, serde_json::from_str(body).unwrap_or_default()))
    }

    /// The same for a request as it is.
    pub(crate) fn raw(&self, request: &[u8]) -> (u16, Value) {
        let (status, body) = self.bytes(request);
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// The head of an answer in small letters, and its body.
    pub(crate) fn head_and_body(&self, path: &str) -> (String, Vec<u8>) {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: test\r\nX-API-Key: {}\r\nConnection: close\r\n\r\n", self.key);
        self.parts(request.as_bytes())
    }

    /// The status and the body, whatever it is.
    pub(crate) fn bytes(&self, request: &[u8]) -> (u16, Vec<u8>) {
        let (head, body) = self.parts(request);
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
    }

    fn parts(&self, request: &[u8]) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        // A server may answer before it has read all.
        stream.write_all(request).ok();
        let mut answer = Vec::new();
        // It may end such a connection by a reset.
        stream.read_to_end(&mut answer).ok();
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&answer)));
        let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase();
        let body = &answer[end + 4..];
        let body = if head.contains("transfer-encoding: chunked") { whole(body) } else { body.to_vec() };
        (head, body)
    }

    /// A form with these fields, in their order.
    pub(crate) fn form(&self, path: &str, fields: &[(&str, &[u8])]) -> (u16, Value) {
        let mut body = Vec::new();
        for (name, value) in fields {
            let file = if *name == "file" { "; filename=\"a\"" } else { "" };
            body.extend(format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").into_bytes());
            body.extend_from_slice(value);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--B--\r\n");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: test\r\nX-API-Key: {}\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: multipart/form-data; boundary=B\r\n\r\n",
            self.key,
            body.len()
        );
        self.raw(&[head.as_bytes(), &body].concat())
    }

    /// The bytes of a file in a sandbox.
    pub(crate) fn read(&self, id: &str, path: &str) -> (u16, Vec<u8>) {
        let body = serde_json::json!({"path": path}).to_string();
        let head = format!(
            "POST /v1/sandboxes/{id}/files/read HTTP/1.1\r\nHost: test\r\nX-API-Key: {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        );
        self.bytes(head.as_bytes())
    }
}

/// The body of some chunks (RFC 9112, section 7.1), which has to be whole.
fn whole(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|window| window == b"\r\n").expect("a chunk's length");
        let len = usize::from_str_radix(std::str::from_utf8(&chunks[..end]).unwrap(), 16).unwrap();
        if len == 0 {
            return body;
        }
        body.extend_from_slice(&chunks[end + 2..end + 2 + len]);
        chunks = &chunks[end + 4 + len..];
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
