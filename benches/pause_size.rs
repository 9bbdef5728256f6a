//! A pause costs what was written, whatever the size of the guest's memory.

use std::time::{Duration, Instant};

use wrenn_core::{Host, Sandbox};

mod support;
use support::{Goal, report, report_percentiles};

const ROUNDS: usize = 6;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::builder().open().await?;
    let mut small = Sandbox::builder(&host, "base").memory_mib(256).create().await?;
    let mut large = Sandbox::builder(&host, "base").memory_mib(4096).create().await?;
    let (mut values, mut references) = (Vec::new(), Vec::new());
    let (mut stored, mut stored_reference) = (0, 0);
    for round in 0..=ROUNDS {
        let (reference, bytes_reference) = write_and_pause(&mut small).await?;
        let (value, bytes) = write_and_pause(&mut large).await?;
        if round > 0 {
            references.push(reference.as_secs_f64() * 1e3);
            values.push(value.as_secs_f64() * 1e3);
            (stored, stored_reference) = (bytes, bytes_reference);
        }
    }
    report_percentiles("pause_size", "ms", &values, &references, [Goal::AtMost(1.2), Goal::None]);
    report("pause_size/stored", "MiB", mib(stored), mib(stored_reference), Goal::AtMost(1.2));
    small.kill().await?;
    large.kill().await?;
    Ok(())
}

/// 16 MiB are written anew, and the sandbox is paused and resumed.
async fn write_and_pause(sandbox: &mut Sandbox) -> anyhow::Result<(Duration, u64)> {
    sandbox.exec("head -c 16777216 /dev/urandom > /dev/shm/written").await?;
    let began = Instant::now();
    let paused = sandbox.pause().await?;
    let took = began.elapsed();
    let stored = paused.stored_bytes();
    *sandbox = paused.resume().await?;
    Ok((took, stored))
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
