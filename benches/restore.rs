//! From the call of `resume` to the first exec's answer, on a real virtual machine.
//!
//! The reference is the same QEMU with all of its memory in place before it starts, and the time that took left out: what
//! a restore would cost if memory came for nothing.

use std::time::{Duration, Instant};

use wrenn_core::{Error, Host, Paging, PausedSandbox, Sandbox};

#[path = "../wrenn-snapshot/benches/support/mod.rs"]
mod support;
use support::{Goal, report_percentiles};

const ROUNDS: usize = 12;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let lazy = Host::builder().paging(Paging::Lazy).open().await?;
    let eager = Host::builder().paging(Paging::Eager).open().await?;
    let sandbox = Sandbox::create(&lazy, "base").await?;
    sandbox.exec("true").await?;
    let paused = sandbox.pause().await?;
    let (lazily, eagerly) = (lazy.paused(paused.id())?, eager.paused(paused.id())?);

    let (mut values, mut references, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (value, _) = resume_and_exec(&lazily).await?;
        let (total, populated_in) = resume_and_exec(&eagerly).await?;
        // The first round warms the page cache.
        if round > 0 {
            values.push(ms(value));
            references.push(ms(total - populated_in));
            all.push(ms(total));
        }
    }
    report_percentiles("resume_first_exec", "ms", &values, &references, [Goal::AtMost(2.0), Goal::None]);
    report_percentiles("resume_first_exec_eager", "ms", &all, &references, [Goal::None, Goal::None]);
    resume(&paused).await?.0.kill().await?;
    Ok(())
}

async fn resume_and_exec(paused: &PausedSandbox) -> anyhow::Result<(Duration, Duration)> {
    let (sandbox, began) = resume(paused).await?;
    sandbox.exec("true").await?;
    let took = began.elapsed();
    let populated_in = sandbox.restore_report().await?.populated_in;
    Ok((took, populated_in))
}

/// The sandbox, and when the resume that succeeded began.
async fn resume(paused: &PausedSandbox) -> anyhow::Result<(Sandbox, Instant)> {
    loop {
        let began = Instant::now();
        match paused.resume().await {
            // The last round's handle was dropped, which keeps the pause, and its VM is not gone yet.
            Err(Error::InvalidState { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            resumed => return Ok((resumed?, began)),
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
