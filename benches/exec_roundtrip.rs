//! From the call to the collected end of a command that does nothing, beside the two things that it cannot do without: a
//! request to the same guest and its answer, and starting and reaping a process there.

use wrenn_core::Sandbox;

mod support;
use support::{Goal, guest, report_percentiles};

const ROUNDS: usize = 200;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (_host, sandbox) = guest::sandbox().await?;
    let mut http = guest::Http::connect(&sandbox).await?;
    let mut spawner = guest::Spawner::start(&sandbox).await?;
    let [mut values, mut requests, mut spawns] = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        let request = guest::ms(http.health()).await?;
        let spawn = spawner.spawn_ms().await?;
        let value = guest::ms(exec(&sandbox)).await?;
        if round > 0 {
            values.push(value);
            requests.push(request);
            spawns.push(spawn);
        }
    }
    report_percentiles("exec_roundtrip/request", "ms", &requests, &requests, [Goal::None, Goal::None]);
    report_percentiles("exec_roundtrip/spawn", "ms", &spawns, &spawns, [Goal::None, Goal::None]);
    let references: Vec<f64> = requests.iter().zip(&spawns).map(|(request, spawn)| request + spawn).collect();
    report_percentiles("exec_roundtrip", "ms", &values, &references, [Goal::AtMost(1.3), Goal::None]);
    sandbox.kill().await?;
    Ok(())
}

async fn exec(sandbox: &Sandbox) -> anyhow::Result<()> {
    let output = sandbox.command("/bin/true").output().await?;
    anyhow::ensure!(output.status.success(), "{}", output.status);
    Ok(())
}
