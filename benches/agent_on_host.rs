//! What the other figures of the agent are without a guest: the agent alone, on this machine's own processor, and a plain
//! client. Beside each the same reference as in the guest.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::ensure;

mod support;
use support::{
    Goal,
    agent::{self, Agent},
    report_percentiles, skipped,
};

/// In memory: it is the way that is measured, and not a disk.
const READ: &str = "/dev/shm/wrenn-bench-read";
const WRITTEN: &str = "/dev/shm/wrenn-bench-written";
const RAW: &str = "/dev/shm/wrenn-bench-raw";
const FILE_BYTES: usize = 128 << 20;
const OUTPUT_BYTES: usize = 64 << 20;

fn main() -> anyhow::Result<()> {
    let Some(program) = agent::built() else {
        skipped("agent_on_host", &"the agent is not built: run `cargo xtask setup`");
        return Ok(());
    };
    let agent = Agent::start(&mut Command::new(program))?;
    let measured = exec_roundtrip(&agent)
        .and_then(|()| exec_throughput(&agent))
        .and_then(|()| files(&agent))
        .and_then(|()| spawn_rate(&agent))
        .and_then(|()| watch_latency(&agent));
    for path in [READ, WRITTEN, RAW] {
        let _ = fs::remove_file(path);
    }
    measured
}

/// Samples of both, in turns, in a unit of which a second has so many. The first round warms up.
fn in_turns(
    rounds: usize,
    per_second: f64,
    mut subject: impl FnMut() -> anyhow::Result<()>,
    mut reference: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<[Vec<f64>; 2]> {
    let mut samples = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        let began = Instant::now();
        subject()?;
        let value = began.elapsed();
        reference()?;
        let both = began.elapsed();
        if round > 0 {
            for (samples, took) in samples.iter_mut().zip([value, both - value]) {
                samples.push(took.as_secs_f64() * per_second);
            }
        }
    }
    Ok(samples)
}

fn exec_roundtrip(agent: &Agent) -> anyhow::Result<()> {
    let (mut http, mut other) = (agent.connect()?, agent.connect()?);
    let process = || {
        other.health()?;
        start_one()
    };
    let [values, references] = in_turns(500, MICROSECONDS, || http.run("/bin/true", &[]).map(drop), process)?;
    report_percentiles("exec_roundtrip/host", "us", &values, &references, [Goal::AtMost(1.3), Goal::None]);
    Ok(())
}

fn start_one() -> anyhow::Result<()> {
    ensure!(Command::new("/bin/true").status()?.success());
    Ok(())
}

fn exec_throughput(agent: &Agent) -> anyhow::Result<()> {
    let (mut http, raw) = (agent.connect()?, RawCopy::start()?);
    let output = || {
        let bytes = http.run("head", &["-c", &OUTPUT_BYTES.to_string(), "/dev/zero"])?;
        ensure!(bytes >= OUTPUT_BYTES, "{bytes} bytes came");
        Ok(())
    };
    let [values, references] = in_turns(10, MILLISECONDS, output, || raw.pipe(OUTPUT_BYTES))?;
    report_percentiles("exec_throughput/host", "ms", &values, &references, [Goal::AtMost(1.25), Goal::None]);
    Ok(())
}

fn files(agent: &Agent) -> anyhow::Result<()> {
    let (mut http, raw) = (agent.connect()?, RawCopy::start()?);
    let bytes = vec![1; FILE_BYTES];
    fs::write(READ, &bytes)?;
    let read = || {
        ensure!(http.read_file(READ)? == FILE_BYTES);
        Ok(())
    };
    let [values, references] = in_turns(10, MILLISECONDS, read, || raw.get(FILE_BYTES))?;
    report_percentiles("file_read/host", "ms", &values, &references, [Goal::AtMost(1.25), Goal::None]);
    let [values, references] = in_turns(10, MILLISECONDS, || http.write_file(WRITTEN, &bytes), || raw.save(&bytes))?;
    report_percentiles("file_write/host", "ms", &values, &references, [Goal::AtMost(1.25), Goal::None]);
    Ok(())
}

/// Four clients at once, each a hundred commands in turn, beside the processes that one program starts in turn.
fn spawn_rate(agent: &Agent) -> anyhow::Result<()> {
    const CLIENTS: u32 = 4;
    const COMMANDS: u32 = 100;
    let all = || {
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| run_in_turn(agent, COMMANDS))).collect();
            clients.into_iter().try_for_each(|client| client.join().expect("a client does not panic"))
        })
    };
    let in_turn = || (0..CLIENTS * COMMANDS).try_for_each(|_| start_one());
    let rate = |took: &f64| f64::from(CLIENTS * COMMANDS) / took;
    let samples = in_turns(10, 1.0, all, in_turn)?;
    let [values, references] = samples.map(|samples| samples.iter().map(rate).collect::<Vec<_>>());
    report_percentiles("spawn_rate/host", "/s", &values, &references, [Goal::None, Goal::None]);
    Ok(())
}

fn run_in_turn(agent: &Agent, commands: u32) -> anyhow::Result<()> {
    let mut http = agent.connect()?;
    (0..commands).try_for_each(|_| http.run("/bin/true", &[]).map(drop))
}

/// From the writing of a file to the word of its watcher, beside the writing alone.
fn watch_latency(agent: &Agent) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut http = agent.connect()?;
    http.watch(directory.path())?;
    // The first message says that it watches.
    http.chunk()?;
    let (mut number, mut other) = (0, 0);
    let watched = || {
        number += 1;
        let name = format!("file-{number}-");
        fs::write(directory.path().join(&name), "x")?;
        while !String::from_utf8_lossy(&http.chunk()?.unwrap_or_default()).contains(&name) {}
        Ok(())
    };
    let elsewhere = tempfile::tempdir()?;
    let alone = || {
        other += 1;
        Ok(fs::write(elsewhere.path().join(other.to_string()), "x")?)
    };
    let [values, references] = in_turns(200, MICROSECONDS, watched, alone)?;
    report_percentiles("watch_latency/host", "us", &values, &references, [Goal::None, Goal::None]);
    Ok(())
}

/// A server that copies between a socket and its memory, a file or a program's pipe, as in the guest.
struct RawCopy {
    port: u16,
}

/// What a client asks of it.
#[derive(Clone, Copy)]
enum Way {
    FromMemory = 0,
    FromPipe = 1,
    ToFile = 2,
}

impl RawCopy {
    fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        // It ends with the program.
        std::thread::spawn(move || listener.incoming().flatten().try_for_each(serve));
        Ok(Self { port })
    }

    fn get(&self, bytes: usize) -> anyhow::Result<()> {
        self.receive(bytes, Way::FromMemory)
    }

    fn pipe(&self, bytes: usize) -> anyhow::Result<()> {
        self.receive(bytes, Way::FromPipe)
    }

    fn receive(&self, bytes: usize, way: Way) -> anyhow::Result<()> {
        let mut stream = self.connect(bytes, way)?;
        let (mut buffer, mut left) = (vec![0; BLOCK], bytes);
        while left > 0 {
            let len = stream.read(&mut buffer)?;
            ensure!(len > 0, "the server closed the connection");
            left -= len;
        }
        Ok(())
    }

    fn save(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut stream = self.connect(bytes.len(), Way::ToFile)?;
        stream.write_all(bytes)?;
        Ok(stream.read_exact(&mut [0])?)
    }

    fn connect(&self, bytes: usize, way: Way) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.write_all(&[&u64::try_from(bytes)?.to_le_bytes()[..], &[way as u8]].concat())?;
        Ok(stream)
    }
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let (length, way) = head.split_at(8);
    let length = usize::try_from(u64::from_le_bytes(length.try_into().expect("8 bytes"))).expect("it fits");
    match way[0] {
        way if way == Way::FromMemory as u8 => send(&mut stream, length),
        way if way == Way::FromPipe as u8 => send_output(&mut stream, length),
        _ => save(&mut stream, length),
    }
}

fn send(stream: &mut TcpStream, mut left: usize) -> std::io::Result<()> {
    let block = vec![0; BLOCK];
    while left > 0 {
        let len = left.min(BLOCK);
        stream.write_all(&block[..len])?;
        left -= len;
    }
    Ok(())
}

fn send_output(stream: &mut TcpStream, bytes: usize) -> std::io::Result<()> {
    let mut head = Command::new("head").args(["-c", &bytes.to_string(), "/dev/zero"]).stdout(Stdio::piped()).spawn()?;
    let mut output = head.stdout.take().expect("its output is piped");
    let mut block = vec![0; 64 << 10];
    loop {
        match output.read(&mut block)? {
            0 => break,
            len => stream.write_all(&block[..len])?,
        }
    }
    head.wait().map(drop)
}

fn save(stream: &mut TcpStream, mut left: usize) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut file = fs::File::create(RAW)?;
    while left > 0 {
        let len = stream.read(&mut block)?;
        if len == 0 {
            return Ok(());
        }
        file.write_all(&block[..len])?;
        left -= len;
    }
    stream.write_all(&[1])
}

const BLOCK: usize = 256 << 10;
const MILLISECONDS: f64 = 1e3;
const MICROSECONDS: f64 = 1e6;
