//! From the call of `kill` to its answer, when the machine is gone: of an idle sandbox, of one that is being forked, and of
//! one that is being paused after it wrote much.
//!
//! The reference is the end of a VMM alone: a signal to an idle sandbox's process, until the kernel says that it is gone.

use std::time::{Duration, Instant};

use wrenn_core::{Host, Sandbox};

mod support;
use support::{Goal, report, report_percentiles};

const ROUNDS: usize = 10;
/// No kill takes longer, whatever it overtakes.
const WORST_MS: f64 = 1000.0;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::builder().open().await?;
    let (mut idle, mut forking, mut pausing, mut alone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let mut timed = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        let sandbox = Sandbox::create(&host, "base").await?;
        timed[0].push(kill(&sandbox).await?);

        let sandbox = Sandbox::create(&host, "base").await?;
        let forked = sandbox.clone();
        let fork = tokio::spawn(async move { forked.fork(8).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(30)).await;
        timed[1].push(kill(&sandbox).await?);
        // Overtaken, or done before.
        let _ = fork.await?;

        let sandbox = Sandbox::create(&host, "base").await?;
        sandbox.exec("head -c 200000000 /dev/urandom > /dev/shm/much").await?;
        let paused = sandbox.clone();
        let pause = tokio::spawn(async move { paused.pause().await });
        tokio::time::sleep(Duration::from_millis(30)).await;
        timed[2].push(kill(&sandbox).await?);
        if let Ok(paused) = pause.await? {
            paused.delete().await?;
        }

        let sandbox = Sandbox::create(&host, "base").await?;
        let vmm = nix::unistd::Pid::from_raw(i32::try_from(sandbox.vmm_pid().await?)?);
        let began = Instant::now();
        nix::sys::signal::kill(vmm, nix::sys::signal::Signal::SIGKILL)?;
        sandbox.wait().await;
        timed[3].push(ms(began.elapsed()));
        // The first round warms the page cache.
        if round > 0 {
            for (all, one) in [&mut idle, &mut forking, &mut pausing, &mut alone].into_iter().zip(timed) {
                all.extend(one);
            }
        }
    }
    for (name, values) in [("kill_idle", &idle), ("kill_in_fork", &forking), ("kill_in_pause", &pausing)] {
        report_percentiles(name, "ms", values, &alone, [Goal::None, Goal::None]);
        let worst = values.iter().copied().fold(0.0, f64::max);
        report(&format!("{name}/worst"), "ms", worst, WORST_MS, Goal::AtMost(1.0));
    }
    Ok(())
}

async fn kill(sandbox: &Sandbox) -> anyhow::Result<f64> {
    let began = Instant::now();
    sandbox.kill().await?;
    Ok(ms(began.elapsed()))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
