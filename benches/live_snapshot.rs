//! How long a snapshot stops its sandbox: after little and after much was written to memory, and while it goes on writing.

use wrenn_core::{Host, Sandbox, SaveReport};

mod support;
use support::{Goal, report, report_percentiles};

const ROUNDS: usize = 6;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::builder().open().await?;
    let sandbox = Sandbox::builder(&host, "base").memory_mib(1024).create().await?;
    let (mut values, mut references, mut frozen) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let reference = write_and_snapshot(&host, &sandbox, "/dev/shm", 16).await?;
        let value = write_and_snapshot(&host, &sandbox, "/dev/shm", 256).await?;
        if round > 0 {
            references.push(stop_ms(&reference));
            values.push(stop_ms(&value));
            frozen.push(value.frozen_for.as_secs_f64() * 1e3);
        }
    }
    report_percentiles("live_snapshot_stop", "ms", &values, &references, [Goal::AtMost(1.5), Goal::None]);
    let worst = values.iter().copied().fold(0.0, f64::max);
    report("live_snapshot_stop/limit", "ms", worst, 20.0, Goal::AtMost(1.0));
    report_percentiles("live_snapshot_frozen", "ms", &frozen, &values, [Goal::None, Goal::None]);
    report_hard_writing(&host, &sandbox, &references).await?;
    sandbox.kill().await?;
    Ok(())
}

/// Rewrites 64 MiB, page by page and without a pause.
const WRITER: &str = "import mmap
m = mmap.mmap(-1, 64 << 20)
n = 0
while True:
    n = (n + 1) % 256
    for at in range(0, 64 << 20, 4096): m[at] = n
";

async fn report_hard_writing(host: &Host, sandbox: &Sandbox, references: &[f64]) -> anyhow::Result<()> {
    sandbox.write_file("/tmp/writer.py", WRITER).await?;
    sandbox.exec("nohup python3 /tmp/writer.py > /dev/null 2>&1 & sleep 2").await?;
    let (mut values, mut held) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        let report = snapshot(host, sandbox).await?;
        values.push(stop_ms(&report));
        held += report.held_bytes;
    }
    sandbox.exec("pkill -f writer.py").await?;
    anyhow::ensure!(held > 0, "the guest wrote, and nothing of it was held");
    report_percentiles("live_snapshot_stop_writing", "ms", &values, references, [Goal::None, Goal::None]);
    let worst = values.iter().copied().fold(0.0, f64::max);
    report("live_snapshot_stop_writing/limit", "ms", worst, 20.0, Goal::AtMost(1.0));
    Ok(())
}

fn stop_ms(report: &SaveReport) -> f64 {
    report.stopped_for.as_secs_f64() * 1e3
}

async fn write_and_snapshot(host: &Host, sandbox: &Sandbox, dir: &str, mib: u32) -> anyhow::Result<SaveReport> {
    sandbox.exec(&format!("head -c {mib}M /dev/urandom > {dir}/written; sync")).await?;
    snapshot(host, sandbox).await
}

async fn snapshot(host: &Host, sandbox: &Sandbox) -> anyhow::Result<SaveReport> {
    sandbox.snapshot("bench-live-snapshot").await?;
    host.remove_template("bench-live-snapshot").await?;
    sandbox.save_report().await?.ok_or_else(|| anyhow::anyhow!("there was a snapshot"))
}
