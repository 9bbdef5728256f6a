//! A running sandbox, and plain connections to it that figures of the agent are held against.

use std::time::Instant;

use anyhow::ensure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wrenn_core::{Child, Event, Host, PortStream, Sandbox};

/// A sandbox whose pages are in memory, so that no restore is measured.
pub(crate) async fn sandbox() -> anyhow::Result<(Host, Sandbox)> {
    let host = Host::builder().open().await?;
    let sandbox = Sandbox::create(&host, "base").await?;
    for _ in 0..3 {
        sandbox.exec("true").await?;
    }
    Ok((host, sandbox))
}

/// A kept HTTP/1.1 connection to the agent.
pub(crate) struct Http(PortStream);

impl Http {
    pub(crate) async fn connect(sandbox: &Sandbox) -> anyhow::Result<Self> {
        Ok(Self(sandbox.connect(49983).await?))
    }

    /// One request without a body, and its answer, which has none either.
    pub(crate) async fn health(&mut self) -> anyhow::Result<()> {
        self.0.write_all(b"GET /health HTTP/1.1\r\nhost: guest\r\n\r\n").await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            ensure!(self.0.read_buf(&mut answer).await? > 0, "the agent closed the connection");
        }
        ensure!(answer.starts_with(b"HTTP/1.1 204"), "{}", String::from_utf8_lossy(&answer));
        Ok(())
    }
}

/// A server in the guest that copies between a socket and its memory, a file or a program's pipe, with the calls of a plain
/// program: it sends as many bytes as the first line asks for, or takes as many and answers one byte.
pub(crate) struct RawCopy {
    sandbox: Sandbox,
    _server: Child,
}

const SERVER: &str = r"
import os, socket, subprocess
listener = socket.create_server(('0.0.0.0', 9000))
print('ready', flush=True)
block = bytearray(1 << 18)
while True:
    stream, _ = listener.accept()
    word, count = stream.makefile('rb', buffering=0).readline().split()
    left = int(count)
    if word == b'pipe':
        head = subprocess.Popen(['head', '-c', str(left), '/dev/zero'], stdout=subprocess.PIPE, bufsize=0)
        while block := os.read(head.stdout.fileno(), 1 << 16): stream.sendall(block)
        head.stdout.close(); head.wait(); left = 0; block = bytearray(1 << 18)
    modes = {b'save': 'wb', b'load': 'rb'}
    file = open('/dev/shm/raw', modes[word], buffering=0) if word in modes else None
    while left:
        if word == b'load':
            count = file.readinto(block)
            stream.sendall(memoryview(block)[:count])
            left -= count
        elif word == b'get':
            left -= stream.send(memoryview(block)[:min(left, len(block))])
        else:
            got = stream.recv_into(block, min(left, len(block)))
            if not got: break
            if file: file.write(memoryview(block)[:got])
            left -= got
    if file: file.close()
    if word in (b'put', b'save'): stream.sendall(b'k')
    stream.close()
";

impl RawCopy {
    pub(crate) async fn start(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let mut server = sandbox.command("python3").args(["-c", SERVER]).spawn().await?;
        ensure!(matches!(server.next_event().await?, Some(Event::Stdout(_))), "the server did not come up");
        Ok(Self { sandbox: sandbox.clone(), _server: server })
    }

    /// From the server's memory.
    pub(crate) async fn get(&self, bytes: usize) -> anyhow::Result<()> {
        self.receive("get", bytes).await
    }

    /// From the file that [`save`](Self::save) has left, which is no shorter.
    pub(crate) async fn load(&self, bytes: usize) -> anyhow::Result<()> {
        self.receive("load", bytes).await
    }

    /// From a program that writes so much into a pipe.
    pub(crate) async fn pipe(&self, bytes: usize) -> anyhow::Result<()> {
        self.receive("pipe", bytes).await
    }

    async fn receive(&self, word: &str, bytes: usize) -> anyhow::Result<()> {
        let mut stream = self.sandbox.connect(9000).await?;
        stream.write_all(format!("{word} {bytes}\n").as_bytes()).await?;
        let (mut buffer, mut left) = (vec![0; 256 << 10], bytes);
        while left > 0 {
            let len = stream.read(&mut buffer).await?;
            ensure!(len > 0, "the server closed the connection");
            left -= len;
        }
        Ok(())
    }

    /// To the server's memory.
    pub(crate) async fn put(&self, bytes: usize) -> anyhow::Result<()> {
        self.send("put", bytes).await
    }

    /// To a new file, in the guest's memory.
    pub(crate) async fn save(&self, bytes: usize) -> anyhow::Result<()> {
        self.send("save", bytes).await
    }

    async fn send(&self, word: &str, bytes: usize) -> anyhow::Result<()> {
        let mut stream = self.sandbox.connect(9000).await?;
        stream.write_all(format!("{word} {bytes}\n").as_bytes()).await?;
        let (block, mut left) = (vec![1; 256 << 10], bytes);
        while left > 0 {
            let len = left.min(block.len());
            stream.write_all(&block[..len]).await?;
            left -= len;
        }
        ensure!(stream.read_u8().await? == b'k', "the server did not take all");
        Ok(())
    }
}

/// A program in the guest that starts and reaps a `/bin/true` when it is told to, with the calls of a plain program whose
/// memory is small: `posix_spawn` and `waitpid`.
pub(crate) struct Spawner(Child);

const SPAWNER: &str = r"
import os, sys, time
for _ in sys.stdin:
    began = time.perf_counter()
    os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)
    print((time.perf_counter() - began) * 1e3, flush=True)
";

impl Spawner {
    pub(crate) async fn start(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let mut this = Self(sandbox.command("python3").args(["-c", SPAWNER]).stdin_piped().spawn().await?);
        this.spawn_ms().await?;
        Ok(this)
    }

    /// How long one takes, in ms.
    pub(crate) async fn spawn_ms(&mut self) -> anyhow::Result<f64> {
        self.0.write_stdin("\n").await?;
        match self.0.next_event().await? {
            Some(Event::Stdout(line)) => Ok(std::str::from_utf8(&line)?.trim().parse()?),
            other => anyhow::bail!("{other:?}"),
        }
    }
}

/// How long something takes, in ms.
pub(crate) async fn ms(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<f64> {
    let began = Instant::now();
    work.await?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
