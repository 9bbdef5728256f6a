//! How long a snapshot stops its sandbox, after little and after much was written.

use wrenn_core::{Host, Sandbox};

mod support;
use support::{Goal, report, report_percentiles};

const ROUNDS: usize = 6;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::builder().open().await?;
    let sandbox = Sandbox::builder(&host, "base").memory_mib(1024).create().await?;
    let (mut values, mut references, mut frozen) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (reference, _) = write_and_snapshot(&host, &sandbox, 16).await?;
        let (value, all) = write_and_snapshot(&host, &sandbox, 256).await?;
        if round > 0 {
            references.push(reference);
            values.push(value);
            frozen.push(all);
        }
    }
    report_percentiles("live_snapshot_stop", "ms", &values, &references, [Goal::AtMost(1.5), Goal::None]);
    let worst = values.iter().copied().fold(0.0, f64::max);
    report("live_snapshot_stop/limit", "ms", worst, 20.0, Goal::AtMost(1.0));
    report_percentiles("live_snapshot_frozen", "ms", &frozen, &values, [Goal::None, Goal::None]);
    sandbox.kill().await?;
    Ok(())
}

/// How long the machine was stopped, and how long its processes were frozen, in ms.
async fn write_and_snapshot(host: &Host, sandbox: &Sandbox, mib: u32) -> anyhow::Result<(f64, f64)> {
    sandbox.exec(&format!("head -c {mib}M /dev/urandom > /dev/shm/written")).await?;
    sandbox.snapshot("bench-live-snapshot").await?;
    host.remove_template("bench-live-snapshot")?;
    let report = sandbox.save_report().await?.ok_or_else(|| anyhow::anyhow!("there was a snapshot"))?;
    Ok((report.stopped_for.as_secs_f64() * 1e3, report.frozen_for.as_secs_f64() * 1e3))
}
