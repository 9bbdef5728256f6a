//! An agent on this machine, without a guest, and a plain client of it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};

/// As the build of wrenn-core leaves it.
pub(crate) fn built() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let built = program.ancestors().nth(3)?.join("wrenn-agent/x86_64-unknown-linux-gnu/agent/wrenn-envd");
    built.is_file().then_some(built)
}

/// An agent that runs. Dropping it kills it.
pub(crate) struct Agent {
    child: Child,
    address: String,
}

impl Agent {
    /// Starts what [`command`] makes, and waits until it serves.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        // Not as init: that would mount, and at its end switch the machine off.
        command.args(["--no-init", "--address", "127.0.0.1", "--port", "0"]).stderr(Stdio::piped());
        let mut this = Self { child: command.spawn()?, address: String::new() };
        let mut line = String::new();
        BufReader::new(this.child.stderr.take().context("its stderr is piped")?).read_line(&mut line)?;
        let (_, address) = line.trim().rsplit_once(' ').with_context(|| format!("no address in {line:?}"))?;
        address.clone_into(&mut this.address);
        Ok(this)
    }

    pub(crate) fn connect(&self) -> anyhow::Result<Http> {
        let stream = TcpStream::connect(&self.address)?;
        stream.set_nodelay(true)?;
        Ok(Http(BufReader::with_capacity(256 << 10, stream)))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A kept HTTP/1.1 connection.
pub(crate) struct Http(BufReader<TcpStream>);

/// How the length of a body is told.
enum Length {
    Bytes(usize),
    Chunks,
}

impl Http {
    pub(crate) fn health(&mut self) -> anyhow::Result<()> {
        self.send("GET /health", "", &[])?;
        let (status, _) = self.head()?;
        ensure!(status == 204, "{status}");
        Ok(())
    }

    /// Runs a program to its end, and returns how long the answer was in bytes.
    pub(crate) fn run(&mut self, program: &str, arguments: &[&str]) -> anyhow::Result<usize> {
        let words = std::iter::once((1, program)).chain(arguments.iter().map(|argument| (2, *argument)));
        let config: Vec<u8> = words.flat_map(|(number, word)| field(number, word.as_bytes())).collect();
        self.stream("/process.Process/Start", "application/connect+proto", &field(1, &config))?;
        let mut bytes = 0;
        while let Some(chunk) = self.chunk()? {
            bytes += chunk.len();
        }
        Ok(bytes)
    }

    /// Begins to watch a directory; [`chunk`](Self::chunk) is what comes.
    pub(crate) fn watch(&mut self, directory: &Path) -> anyhow::Result<()> {
        let request = serde_json::json!({ "path": directory }).to_string();
        self.stream("/filesystem.Filesystem/WatchDir", "application/connect+json", request.as_bytes())
    }

    pub(crate) fn read_file(&mut self, path: &str) -> anyhow::Result<usize> {
        self.send(&format!("GET /files?path={path}"), "", &[])?;
        let (status, length) = self.head()?;
        ensure!(status == 200, "{status}");
        let Length::Bytes(length) = length else { anyhow::bail!("a file has a length") };
        let (mut buffer, mut left) = (vec![0; 256 << 10], length);
        while left > 0 {
            let max = left.min(buffer.len());
            let len = self.0.read(&mut buffer[..max])?;
            ensure!(len > 0, "the agent closed the connection");
            left -= len;
        }
        Ok(length)
    }

    pub(crate) fn write_file(&mut self, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
        self.send(&format!("POST /files?path={path}"), "application/octet-stream", bytes)?;
        let (status, length) = self.head()?;
        ensure!(status == 200, "{status}");
        let Length::Bytes(length) = length else { anyhow::bail!("this answer has a length") };
        Ok(self.0.read_exact(&mut vec![0; length])?)
    }

    /// The next chunk of an answer; `None` at its end.
    pub(crate) fn chunk(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let mut chunk = vec![0; usize::from_str_radix(&line, 16).with_context(|| format!("no length: {line:?}"))?];
        self.0.read_exact(&mut chunk)?;
        ensure!(self.line()?.is_empty(), "a chunk is longer than it says");
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    fn stream(&mut self, path: &str, kind: &str, message: &[u8]) -> anyhow::Result<()> {
        // The envelope: no flags, and a length of four bytes.
        let length = u8::try_from(message.len()).context("a message of less than 256 bytes")?;
        self.send(&format!("POST {path}"), kind, &[&[0, 0, 0, 0, length], message].concat())?;
        let (status, length) = self.head()?;
        ensure!(status == 200 && matches!(length, Length::Chunks), "{status}");
        Ok(())
    }

    fn send(&mut self, call: &str, kind: &str, body: &[u8]) -> anyhow::Result<()> {
        let length = body.len();
        let head = format!(
            "{call} HTTP/1.1\r\nhost: agent\r\ncontent-type: {kind}\r\nconnect-protocol-version: 1\r\n\
             content-length: {length}\r\n\r\n"
        );
        let stream = self.0.get_mut();
        if length < 64 << 10 {
            return Ok(stream.write_all(&[head.as_bytes(), body].concat())?);
        }
        stream.write_all(head.as_bytes())?;
        Ok(stream.write_all(body)?)
    }

    fn head(&mut self) -> anyhow::Result<(u16, Length)> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).context("no status")?.parse()?;
        let mut length = Length::Bytes(0);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(": ") {
                Some(("content-length", bytes)) => length = Length::Bytes(bytes.parse()?),
                Some(("transfer-encoding", "chunked")) => length = Length::Chunks,
                Some(_) => {}
                None => return Ok((status, length)),
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line)? > 0, "the agent closed the connection");
        Ok(line.trim_end().to_owned())
    }
}

/// A field of a Protobuf message, shorter than 128 bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).ok().filter(|length| *length < 128).expect("it is short");
    [&[number << 3 | 2, length], bytes].concat()
}
