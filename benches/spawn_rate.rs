//! Commands that are started at the same time, beside the processes that one program of the guest starts in turn.

use std::time::Instant;

use wrenn_core::Sandbox;

mod support;
use support::{Goal, guest, report_percentiles};

const ROUNDS: usize = 10;
const COMMANDS: usize = 64;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (_host, sandbox) = guest::sandbox().await?;
    let mut spawner = guest::Spawner::start(&sandbox).await?;
    let (mut values, mut references) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let mut in_turn = 0.0;
        for _ in 0..COMMANDS {
            in_turn += spawner.spawn_ms().await?;
        }
        let began = Instant::now();
        all_at_once(&sandbox).await?;
        let rate = f64::from(u32::try_from(COMMANDS)?) / began.elapsed().as_secs_f64();
        if round > 0 {
            values.push(rate);
            references.push(1e3 * f64::from(u32::try_from(COMMANDS)?) / in_turn);
        }
    }
    report_percentiles("spawn_rate", "/s", &values, &references, [Goal::None, Goal::None]);
    sandbox.kill().await?;
    Ok(())
}

async fn all_at_once(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut running = Vec::new();
    for _ in 0..COMMANDS {
        let command = sandbox.command("/bin/true");
        running.push(tokio::spawn(async move { command.output().await }));
    }
    for command in running {
        let output = command.await??;
        anyhow::ensure!(output.status.success(), "{}", output.status);
    }
    Ok(())
}
