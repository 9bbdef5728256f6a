//! From the call to the collected end of a command that does nothing, beside the two things that it cannot do without: a
//! request to the same guest and its answer, and starting and reaping a process there.

use std::time::Instant;

mod support;
use support::{Goal, guest, note, report_percentiles};

const ROUNDS: usize = 200;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (_host, sandbox) = guest::sandbox().await?;
    let mut http = guest::Http::connect(&sandbox).await?;
    let spawn_before = guest::spawn_ms(&sandbox, 40).await?;
    let (mut values, mut requests) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let began = Instant::now();
        http.health().await?;
        let request = began.elapsed();
        let began = Instant::now();
        let output = sandbox.command("/bin/true").output().await?;
        anyhow::ensure!(output.status.success(), "{}", output.status);
        if round > 0 {
            values.push(began.elapsed().as_secs_f64() * 1e3);
            requests.push(request.as_secs_f64() * 1e3);
        }
    }
    let spawn = f64::midpoint(spawn_before, guest::spawn_ms(&sandbox, 40).await?);
    note(&format!("a process takes {spawn:.2} ms to start and reap in the guest"));
    report_percentiles("exec_roundtrip/request", "ms", &requests, &requests, [Goal::None, Goal::None]);
    let references: Vec<f64> = requests.iter().map(|request| request + spawn).collect();
    report_percentiles("exec_roundtrip", "ms", &values, &references, [Goal::AtMost(1.3), Goal::None]);
    sandbox.kill().await?;
    Ok(())
}
