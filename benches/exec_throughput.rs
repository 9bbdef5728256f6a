//! What a command writes, on its way to the host, beside a plain TCP copy from the same guest.

use std::time::Instant;

use wrenn_core::{Event, Sandbox};

mod support;
use support::{Goal, guest, report_percentiles};

const ROUNDS: usize = 10;
/// A figure is the time for so many.
const BYTES: usize = 8 << 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (_host, sandbox) = guest::sandbox().await?;
    let raw = guest::RawCopy::start(&sandbox).await?;
    let (mut values, mut references) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let began = Instant::now();
        raw.get(BYTES).await?;
        let reference = began.elapsed().as_secs_f64() * 1e3;
        let began = Instant::now();
        follow(&sandbox).await?;
        if round > 0 {
            values.push(began.elapsed().as_secs_f64() * 1e3);
            references.push(reference);
        }
    }
    report_percentiles("exec_throughput", "ms", &values, &references, [Goal::None, Goal::None]);
    sandbox.kill().await?;
    Ok(())
}

async fn follow(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut child = sandbox.command("head").args(["-c", &BYTES.to_string(), "/dev/zero"]).spawn().await?;
    let mut bytes = 0;
    while let Some(event) = child.next_event().await? {
        if let Event::Stdout(output) = event {
            bytes += output.len();
        }
    }
    anyhow::ensure!(bytes == BYTES, "{bytes} bytes came");
    Ok(())
}
