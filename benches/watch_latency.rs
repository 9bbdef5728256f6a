//! From the call that writes a file to the word of its watcher, beside the call alone.

use std::time::Instant;

mod support;
use support::{Goal, guest, report_percentiles};

const ROUNDS: usize = 100;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (_host, sandbox) = guest::sandbox().await?;
    sandbox.exec("mkdir -p watched").await?;
    let mut watcher = sandbox.watch("watched").start().await?;
    let (mut values, mut references) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let name = format!("file-{round}");
        let began = Instant::now();
        sandbox.write_file(&format!("watched/{name}"), "x").await?;
        let written = began.elapsed();
        loop {
            let change = watcher.next().await?;
            if change.is_some_and(|change| change.path == name) {
                break;
            }
        }
        if round > 0 {
            values.push(began.elapsed().as_secs_f64() * 1e3);
            references.push(written.as_secs_f64() * 1e3);
        }
    }
    report_percentiles("watch_latency", "ms", &values, &references, [Goal::None, Goal::None]);
    sandbox.kill().await?;
    Ok(())
}
