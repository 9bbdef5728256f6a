//! From the call of `resume` to the first exec's answer, on a real virtual machine.
//!
//! The reference is the same QEMU with all of its memory in place before it starts, and the time that took left out: what
//! a restore would cost if memory came for nothing. `restore_prefetch` is the same restore with and without what an
//! earlier one recorded of the pages that it touched.

use std::time::{Duration, Instant};

use wrenn_core::{Error, Host, Paging, PausedSandbox, RestoreReport, Sandbox};

mod support;
use support::{Goal, report_percentiles};

const ROUNDS: usize = 12;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let lazy = Host::builder().paging(Paging::Lazy).open().await?;
    let on_demand = Host::builder().paging(Paging::OnDemand).open().await?;
    let eager = Host::builder().paging(Paging::Eager).open().await?;
    let sandbox = Sandbox::create(&lazy, "base").await?;
    sandbox.exec("true").await?;
    let paused = sandbox.pause().await?;
    let [lazily, on_demand, eagerly] =
        [lazy.paused(paused.id()).await?, on_demand.paused(paused.id()).await?, eager.paused(paused.id()).await?];
    // Records what it touches.
    resume_and_exec(&lazily).await?;

    let (mut values, mut without, mut references, mut all) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut faults, mut faults_without) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (value, report) = resume_and_exec(&lazily).await?;
        let (demand, report_demand) = resume_and_exec(&on_demand).await?;
        let (total, report_eager) = resume_and_exec(&eagerly).await?;
        // The first round warms the page cache.
        if round > 0 {
            values.push(ms(value));
            without.push(ms(demand));
            references.push(ms(total - report_eager.phases.populate));
            all.push(ms(total));
            faults.push(count(report.memory.faults));
            faults_without.push(count(report_demand.memory.faults));
        }
    }
    report_percentiles("resume_first_exec", "ms", &values, &references, [Goal::AtMost(2.0), Goal::None]);
    report_percentiles("resume_on_demand", "ms", &without, &references, [Goal::AtMost(2.0), Goal::None]);
    report_percentiles("resume_eager", "ms", &all, &references, [Goal::None, Goal::None]);
    report_percentiles("restore_prefetch", "ms", &values, &without, [Goal::AtMost(0.7), Goal::None]);
    report_percentiles("restore_prefetch/faults", "", &faults, &faults_without, [Goal::AtMost(0.1), Goal::None]);
    resume(&paused).await?.0.kill().await?;
    Ok(())
}

async fn resume_and_exec(paused: &PausedSandbox) -> anyhow::Result<(Duration, RestoreReport)> {
    let (sandbox, began) = resume(paused).await?;
    sandbox.exec("true").await?;
    let took = began.elapsed();
    Ok((took, sandbox.restore_report().await?))
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

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn count(faults: u64) -> f64 {
    faults as f64
}
