//! An agent of one's own, as a program on this machine, and the ways to talk to it.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod cgroup;
pub(crate) mod disk;
pub(crate) mod exchange;
pub(crate) mod hung;
pub(crate) mod loop_mount;
pub(crate) mod rpc;
pub(crate) mod session;
pub(crate) mod stream;
pub(crate) mod wire;

use std::{
    fs::File,
    net::SocketAddr,
    os::unix::fs::FileExt as _,
    process::{Child, Command},
    thread,
    time::Duration,
};

use connectrpc::{
    ConnectError,
    client::{CallOptions, ClientConfig, HttpClient},
};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Bytes};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use wrenn_envd::proto::process::{
    ProcessClient, ProcessConfig, ProcessEvent, StartRequest, StartResponse,
    process_event::{EndEvent, Event, data_event::Output},
};

/// A running agent, which ends with the test. It fails the test if anything in it has panicked: here that ends one call,
/// but the agent of a guest is built to end at once, and the guest with it.
pub(crate) struct Agent {
    child: Child,
    stderr: File,
    pub(crate) address: SocketAddr,
}

impl Agent {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With options of its own.
    pub(crate) fn start_with(options: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn-envd"));
        command.args(["--no-init", "--address", "127.0.0.1", "--port", "0"]).args(options);
        let stderr = tempfile::tempfile().expect("a file");
        command.stderr(stderr.try_clone().expect("a descriptor"));
        let child = command.spawn().expect("the agent starts");
        let mut agent = Self { child, stderr, address: ([127, 0, 0, 1], 0).into() };
        let line = agent.first_line();
        let (_, address) = line.rsplit_once(' ').expect("the address is the last word");
        agent.address = address.parse().expect("an address");
        agent
    }

    fn first_line(&self) -> String {
        for _ in 0..10_000 {
            if let Some((line, _)) = self.said().split_once('\n') {
                return line.to_owned();
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("the agent does not say where it serves")
    }

    /// All that it has written to its console.
    pub(crate) fn said(&self) -> String {
        let length = self.stderr.metadata().expect("an open file").len();
        let mut said = vec![0; usize::try_from(length).expect("a short text")];
        self.stderr.read_exact_at(&mut said, 0).expect("it only grows");
        String::from_utf8_lossy(&said).into_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn client(&self) -> ProcessClient<HttpClient> {
        let base = format!("http://{}", self.address).parse().expect("a URI");
        ProcessClient::new(HttpClient::plaintext_http2_only(), ClientConfig::new(base))
    }

    /// Runs a shell's line to its end.
    pub(crate) async fn shell(&self, line: &str) -> Result<Collected, ConnectError> {
        self.run(start("sh", &["-c", line]), CallOptions::default()).await
    }

    pub(crate) async fn run(&self, request: StartRequest, options: CallOptions) -> Result<Collected, ConnectError> {
        let mut stream = self.client().start_with_options(request, options).await?;
        let mut collected = Collected::default();
        while let Some(message) = stream.message::<StartResponse>().await? {
            collected.add(message.to_owned_message().event.into_option().expect("an event"));
        }
        Ok(collected)
    }

    /// One plain HTTP/1.1 call.
    pub(crate) async fn call(
        &self,
        method: &str,
        route: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Bytes> {
        let stream = TcpStream::connect(self.address).await.expect("the agent listens");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(route).header("host", "guest");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let (head, body) = sender.send_request(request).await.expect("an answer").into_parts();
        Response::from_parts(head, body.collect().await.expect("a whole answer").to_bytes())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let said = self.said();
        assert!(thread::panicking() || !said.contains("panicked at"), "{said}");
    }
}

/// What a process did.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) pid: u32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) pty: Vec<u8>,
    /// Where output that is no longer held began, and how long it was.
    pub(crate) lost: Vec<(u64, u64)>,
    pub(crate) end: Option<EndEvent>,
}

impl Collected {
    pub(crate) fn add(&mut self, event: ProcessEvent) {
        assert!(self.end.is_none(), "nothing follows the end");
        match event.event.expect("an event") {
            Event::Start(start) => self.pid = start.pid,
            Event::Data(data) => match data.output.expect("output") {
                Output::Stdout(bytes) => self.stdout.extend(bytes),
                Output::Stderr(bytes) => self.stderr.extend(bytes),
                Output::Pty(bytes) => self.pty.extend(bytes),
            },
            Event::Lost(lost) => self.lost.push((lost.offset, lost.bytes)),
            Event::End(end) => self.end = Some(*end),
            Event::Keepalive(_) => {}
        }
    }

    pub(crate) fn exit_code(&self) -> i32 {
        self.end.as_ref().expect("it has ended").exit_code
    }

    pub(crate) fn stdout_utf8(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

pub(crate) fn start(command: &str, args: &[&str]) -> StartRequest {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let process = ProcessConfig { cmd: command.to_owned(), args, ..Default::default() };
    StartRequest { process: process.into(), stdin: Some(false), ..Default::default() }
}

/// Whether a process is there and no zombie.
pub(crate) fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits, for a bounded time, until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come about within 5 s");
}
