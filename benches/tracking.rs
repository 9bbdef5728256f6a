//! What each way of tracking costs a sandbox under QEMU: its first writes after a resume, the stop of a fork, and a pause.
//! The reference of each figure is that of asynchronous tracking.

use std::time::Instant;

use wrenn_core::{Driver, Host, Sandbox, Tracking};

mod support;
use support::{Goal, percentile, report};

const ROUNDS: usize = 5;
/// What the guest has in memory, and reads again after each resume.
const TOUCHED_MIB: u32 = 128;
/// Of which it then writes so much.
const WRITTEN_MIB: u32 = 16;

/// Samples of one way, in milliseconds.
#[derive(Default)]
struct Samples {
    write: Vec<f64>,
    rewrite: Vec<f64>,
    fork_stop: Vec<f64>,
    pause: Vec<f64>,
    stored_mib: Vec<f64>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut references = None;
    for tracking in [Tracking::Async, Tracking::Sync, Tracking::Compare] {
        let host = match Host::builder().driver(Driver::Qemu).tracking(tracking).open().await {
            Ok(host) => host,
            Err(error) => {
                support::skipped("tracking", &error);
                continue;
            }
        };
        let samples = measure(&host).await?;
        let references = references.get_or_insert_with(|| medians(&samples));
        for ((what, unit), (value, reference)) in FIGURES.iter().zip(medians(&samples).iter().zip(references.iter())) {
            let name = format!("tracking_{}/{what}", format!("{tracking:?}").to_lowercase());
            report(&name, unit, *value, *reference, Goal::None);
        }
    }
    Ok(())
}

const FIGURES: [(&str, &str); 5] =
    [("write_16m", "ms"), ("write_again", "ms"), ("fork_stop", "ms"), ("pause", "ms"), ("stored", "MiB")];

fn medians(samples: &Samples) -> [f64; 5] {
    let Samples { write, rewrite, fork_stop, pause, stored_mib } = samples;
    [write, rewrite, fork_stop, pause, stored_mib].map(|samples| percentile(samples, 50))
}

/// Rounds of a resume, first writes, a fork and a pause.
async fn measure(host: &Host) -> anyhow::Result<Samples> {
    let mut sandbox = Sandbox::builder(host, "base").memory_mib(512).create().await?;
    sandbox.write_file("/home/user/writer.py", WRITER).await?;
    let line =
        format!("nohup python3 writer.py {TOUCHED_MIB} > out 2>&1 & until grep -q ready out; do sleep 0.05; done");
    run(&sandbox, &line).await?;
    let mut samples = Samples::default();
    for round in 0..=ROUNDS {
        sandbox = sandbox.pause().await?.resume().await?;
        ask(&sandbox, "read 0").await?;
        let write = ask(&sandbox, &format!("write {WRITTEN_MIB}")).await?;
        let rewrite = ask(&sandbox, &format!("write {WRITTEN_MIB}")).await?;
        for child in sandbox.fork(1).await? {
            child?.kill().await?;
        }
        let Some(fork) = sandbox.save_report().await? else { anyhow::bail!("there was a fork") };
        ask(&sandbox, &format!("write {WRITTEN_MIB}")).await?;
        let began = Instant::now();
        let paused = sandbox.pause().await?;
        let pause = began.elapsed();
        if round > 0 {
            samples.write.push(write);
            samples.rewrite.push(rewrite);
            samples.fork_stop.push(fork.stopped_for.as_secs_f64() * 1e3);
            samples.pause.push(pause.as_secs_f64() * 1e3);
            samples.stored_mib.push(mib(paused.stored_bytes()));
        }
        sandbox = paused.resume().await?;
    }
    sandbox.kill().await?;
    Ok(samples)
}

/// Reads all of its memory, or writes to so many MiB of it, page by page and in no order, and answers how many milliseconds
/// that took.
const WRITER: &str = "import mmap, random, socketserver, sys, time
size = int(sys.argv[1]) << 20
m = mmap.mmap(-1, size)
for at in range(0, size, 4096): m[at:at + 8] = at.to_bytes(8, 'little')
order = list(range(0, size, 4096)); random.Random(7).shuffle(order)
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        word, mib = self.rfile.readline().decode().split()
        pages = order[:int(mib) << 8]
        began = time.monotonic()
        if word == 'read': sum(m[at] for at in range(0, size, 4096))
        else:
            for at in pages: m[at] = (m[at] + 1) % 256
        self.wfile.write(f'{(time.monotonic() - began) * 1e3}'.encode())
socketserver.TCPServer.allow_reuse_address = True
server = socketserver.TCPServer(('127.0.0.1', 7000), Handler)
print('ready', flush=True)
server.serve_forever()
";

async fn ask(sandbox: &Sandbox, request: &str) -> anyhow::Result<f64> {
    let answer = run(sandbox, &format!("exec 3<>/dev/tcp/127.0.0.1/7000; echo '{request}' >&3; cat <&3")).await?;
    Ok(answer.trim().parse()?)
}

async fn run(sandbox: &Sandbox, line: &str) -> anyhow::Result<String> {
    let output = sandbox.exec(line).await?;
    anyhow::ensure!(output.status.success(), "{line}: {}", output.stderr_utf8());
    Ok(output.stdout_utf8())
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
