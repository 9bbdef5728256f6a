//! What the server adds to the same call of the library, what it carries, what it takes by itself, and how it bears a burst.
//!
//! The server is a process of its own: the one that `WRENN_SERVER` names, or this program once more, which is built as the
//! other benches are (`cargo build --profile server -p wrenn-server` makes the one that is installed).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::try_join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use wrenn_core::{Event, Host, Sandbox};
use wrenn_server::memory;
use wrenn_server::serve::{Options, Server};
use wrenn_server::service::admission::Capacity;

mod support;
use support::{Goal, note, percentile, report, report_percentiles};

const ROUNDS: usize = 200;
const PAUSED: usize = 100;
const BURST: usize = 50;
const FILE_BYTES: usize = 32 << 20;
const IDLE_BYTES_MAX: f64 = 25.0 * 1048576.0;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if let Some(data_dir) = std::env::var_os(SERVES) {
        memory::give_back_what_is_free();
        return serve(Path::new(&data_dir)).await;
    }
    let dir = tempfile::tempdir()?;
    std::os::unix::fs::symlink(wrenn_core::default_data_dir().join("images"), dir.path().join("images"))?;
    let server = Served::start(dir.path()).await?;
    report("serve_idle", "KiB", server.resident_bytes()? / 1024.0, IDLE_BYTES_MAX / 1024.0, Goal::AtMost(1.0));
    let host = Host::builder().open().await?;
    let sandbox = Sandbox::create(&host, "base").await?;
    requests(&server, &sandbox).await?;
    throughput(&server, &sandbox).await?;
    sandbox.kill().await?;
    burst(&server, &host).await?;
    paused(&server).await
}

/// A command that does nothing: by the native API, by E2B's, and by the library.
async fn requests(server: &Served, sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut client = server.client().await?;
    let made = client.json(Method::POST, "/v2/sandboxes", &json!({"templateID": "base", "timeout": 3600})).await?;
    let id = text(&made, "sandboxID")?;
    let exec = format!("/v1/sandboxes/{id}/exec");
    let mut by_e2b = server.client().await?;
    by_e2b.headers = vec![
        ("x-access-token", text(&made, "envdAccessToken")?),
        ("e2b-sandbox-id", id),
        ("content-type", "application/connect+json".to_owned()),
        ("connect-protocol-version", "1".to_owned()),
    ];
    let start = json!({"process": {"cmd": "true"}, "stdin": false}).to_string();
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(start.len())?);
    framed.put_slice(start.as_bytes());
    let start = framed.freeze();
    let [mut native, mut e2b, mut library] = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        let begun = Instant::now();
        let answer = client.json(Method::POST, &exec, &json!({"cmd": "true"})).await?;
        ensure!(answer["exit_code"] == 0, "{answer}");
        let of_native = us(begun);
        let begun = Instant::now();
        ensure!(sandbox.command("true").output().await?.status.success(), "it failed");
        let of_library = us(begun);
        let begun = Instant::now();
        let (status, frames) = by_e2b.send(Method::POST, "/process.Process/Start", start.clone()).await?;
        ensure!(status == 200 && frames.windows(6).any(|window| window == b"exited"), "{status}");
        let of_e2b = us(begun);
        if round > 0 {
            native.push(of_native);
            e2b.push(of_e2b);
            library.push(of_library);
        }
    }
    report_percentiles("request_overhead", "us", &native, &library, [Goal::AtMost(1.2), Goal::None]);
    report_percentiles("request_overhead/e2b", "us", &e2b, &library, [Goal::AtMost(1.2), Goal::None]);
    let more = |of: &[f64]| percentile(of, 50) - percentile(&library, 50);
    note(&format!("{:.0} us more by the native API, {:.0} us by E2B's (goal: under 500)", more(&native), more(&e2b)));
    Ok(())
}

/// A file from a server in the guest: through the server's proxy, and by the library.
async fn throughput(server: &Served, sandbox: &Sandbox) -> anyhow::Result<()> {
    const SERVES_FILE: &str =
        "head -c 33554432 /dev/zero > /dev/shm/a; cd /dev/shm; echo ready; exec python3 -m http.server 8000";
    let mut client = server.client().await?;
    let made = client.json(Method::POST, "/v1/sandboxes", &json!({"timeout_sec": 3600})).await?;
    let id = text(&made, "id")?;
    let script = json!({"cmd": "sh", "args": ["-c", format!("({SERVES_FILE}) > /dev/null 2>&1 &")]});
    client.json(Method::POST, &format!("/v1/sandboxes/{id}/exec"), &script).await?;
    let mut child = sandbox.command("sh").args(["-c", SERVES_FILE]).spawn().await?;
    ensure!(matches!(child.next_event().await?, Some(Event::Stdout(_))), "the server did not come up");
    tokio::time::sleep(Duration::from_secs(2)).await;
    // The server lets go of a connection that says nothing for half a minute.
    let mut client = server.client().await?;
    let [mut proxied, mut direct] = [const { Vec::new() }; 2];
    for round in 0..=10 {
        let begun = Instant::now();
        let (status, body) =
            client.send(Method::GET, &format!("/v1/sandboxes/{id}/ports/8000/a"), Bytes::new()).await?;
        ensure!(status == 200 && body.len() == FILE_BYTES, "{status}: {} bytes", body.len());
        let of_proxy = FILE_BYTES as f64 / begun.elapsed().as_secs_f64() / 1e6;
        let begun = Instant::now();
        let mut stream = sandbox.connect(8000).await?;
        stream.write_all(b"GET /a HTTP/1.0\r\n\r\n").await?;
        let (mut read, mut piece) = (0, vec![0; 256 << 10]);
        loop {
            match stream.read(&mut piece).await? {
                0 => break,
                more => read += more,
            }
        }
        ensure!(read > FILE_BYTES, "{read} bytes");
        let of_library = FILE_BYTES as f64 / begun.elapsed().as_secs_f64() / 1e6;
        if round > 0 {
            proxied.push(of_proxy);
            direct.push(of_library);
        }
    }
    report_percentiles("proxy_throughput", "MB/s", &proxied, &direct, [Goal::AtLeast(0.8), Goal::None]);
    client.send(Method::DELETE, &format!("/v1/sandboxes/{id}"), Bytes::new()).await?;
    Ok(())
}

/// Many creates at once: all are answered.
async fn burst(server: &Served, host: &Host) -> anyhow::Result<()> {
    let begun = Instant::now();
    let creates = (0..BURST).map(|_| async {
        let begun = Instant::now();
        let mut client = server.client().await?;
        let made = client.json(Method::POST, "/v1/sandboxes", &json!({"timeout_sec": 3600})).await?;
        anyhow::Ok((text(&made, "id")?, begun.elapsed().as_secs_f64() * 1e3))
    });
    let made = try_join_all(creates).await?;
    let of_server = begun.elapsed().as_secs_f64() * 1e3;
    let deletes = made.iter().map(|(id, _)| async move {
        server.client().await?.send(Method::DELETE, &format!("/v1/sandboxes/{id}"), Bytes::new()).await
    });
    try_join_all(deletes).await?;
    let begun = Instant::now();
    let creates = (0..BURST).map(|_| async {
        let begun = Instant::now();
        let sandbox = Sandbox::create(host, "base").await?;
        anyhow::Ok((sandbox, begun.elapsed().as_secs_f64() * 1e3))
    });
    let by_library = try_join_all(creates).await?;
    let of_library = begun.elapsed().as_secs_f64() * 1e3;
    report("create_burst/all", "ms", of_server, of_library, Goal::None);
    let [each, reference] =
        [made.iter().map(|one| one.1).collect::<Vec<_>>(), by_library.iter().map(|one| one.1).collect()];
    report_percentiles("create_burst", "ms", &each, &reference, [Goal::None, Goal::None]);
    try_join_all(by_library.iter().map(|(sandbox, _)| sandbox.kill())).await?;
    Ok(())
}

/// What the server takes with many that are paused.
async fn paused(server: &Served) -> anyhow::Result<()> {
    let mut client = server.client().await?;
    for _ in 0..PAUSED {
        let made = client.json(Method::POST, "/v1/sandboxes", &json!({})).await?;
        client.json(Method::POST, &format!("/v1/sandboxes/{}/pause", text(&made, "id")?), &json!({})).await?;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut client = server.client().await?;
    report(
        "serve_idle/100_paused",
        "KiB",
        server.resident_bytes()? / 1024.0,
        IDLE_BYTES_MAX / 1024.0,
        Goal::AtMost(1.0),
    );
    let [mut lists, mut pages] = [const { Vec::new() }; 2];
    for _ in 0..50 {
        let begun = Instant::now();
        client.send(Method::GET, "/v1/sandboxes", Bytes::new()).await?;
        lists.push(us(begun));
        let begun = Instant::now();
        client.send(Method::GET, "/v2/sandboxes?limit=100", Bytes::new()).await?;
        pages.push(us(begun));
    }
    report_percentiles("serve_list", "us", &pages, &lists, [Goal::None, Goal::None]);
    Ok(())
}

/// A server that runs until this is dropped.
struct Served {
    process: Child,
    address: SocketAddr,
}

impl Served {
    async fn start(data_dir: &Path) -> anyhow::Result<Self> {
        let mut command = match std::env::var_os(INSTALLED) {
            Some(server) => {
                let mut command = Command::new(server);
                command.args([
                    "serve",
                    "--listen",
                    "127.0.0.1:0",
                    "--no-auth",
                    "--standbys",
                    "0",
                    "--memory-times",
                    "4",
                ]);
                command.args(["--vcpus-times", "64", "--queue-seconds", "60"]).env("WRENN_DATA_DIR", data_dir);
                command
            }
            None => {
                let mut command = Command::new(std::env::current_exe()?);
                command.env(SERVES, data_dir);
                command
            }
        };
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let stdout = tokio::process::ChildStdout::from_std(process.stdout.take().context("it has an output")?)?;
        let begun = Instant::now();
        let mut lines = BufReader::new(stdout).lines();
        let address = loop {
            let line = lines.next_line().await?.context("the server ended")?;
            if let Some(address) = line.split("http://").last().and_then(|address| address.parse().ok()) {
                break address;
            }
        };
        note(&format!("the server was ready in {:.0} ms", begun.elapsed().as_secs_f64() * 1e3));
        // What it says later is nobody's, and has to go somewhere.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { process, address })
    }

    async fn client(&self) -> anyhow::Result<Client> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Client { sender, headers: vec![("content-type", "application/json".to_owned())] })
    }

    /// What is in memory and is this process's alone.
    fn resident_bytes(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the kernel says nothing of it")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A connection that is kept, as a client of HTTP does.
struct Client {
    sender: SendRequest<Full<Bytes>>,
    headers: Vec<(&'static str, String)>,
}

impl Client {
    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<(u16, Bytes)> {
        let mut request = Request::builder().method(method).uri(path).header("host", "bench");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        self.sender.ready().await?;
        let answer = self.sender.send_request(request.body(Full::new(body))?).await?;
        Ok((answer.status().as_u16(), answer.into_body().collect().await?.to_bytes()))
    }

    async fn json(&mut self, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let (status, answer) = self.send(method, path, body.to_string().into()).await?;
        if status >= 300 {
            bail!("{path}: {status} {}", String::from_utf8_lossy(&answer));
        }
        Ok(serde_json::from_slice(&answer)?)
    }
}

async fn serve(data_dir: &Path) -> anyhow::Result<()> {
    let options = Options {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        needs_key: false,
        capacity: Capacity::of_this_machine(4.0, 64.0, Duration::from_secs(60)),
        ..Options::new(data_dir)
    };
    let server = Server::open(&options).await?;
    tokio::spawn(memory::keep_giving_back());
    say(server.address());
    server.serve(std::future::pending()).await
}

#[expect(clippy::print_stdout, reason = "the bench reads it")]
fn say(address: SocketAddr) {
    println!("{address}");
}

fn text(of: &Value, name: &str) -> anyhow::Result<String> {
    Ok(of[name].as_str().with_context(|| format!("no {name} in {of}"))?.to_owned())
}

fn us(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6
}

/// The server to measure.
const INSTALLED: &str = "WRENN_SERVER";
/// Has this program be the server of that data directory.
const SERVES: &str = "WRENN_BENCH_SERVES";
