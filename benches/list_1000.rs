//! A listing of a thousand paused sandboxes.
//!
//! The reference is the reading and parsing of the same files, one after the other, by a plain program. No virtual machine
//! is needed: the records name a generation that holds nothing.

use std::time::Instant;

use anyhow::ensure;
use wrenn_core::{Host, SandboxFilter, SandboxState};
use wrenn_snapshot::LocalStore;

mod support;
use support::{Goal, percentile, records, report, report_percentiles};

const ROUNDS: usize = 50;
/// What a listing may take, in ms.
const LIMIT_MS: f64 = 20.0;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let host = Host::open(dir.path()).await?;
    let generation = LocalStore::open(dir.path().join("generations"))?.begin(None)?.publish(b"")?;
    let files = records::write(dir.path(), &generation.id().to_string())?;
    let filter = SandboxFilter::new().state(SandboxState::Paused).label("owner", "bench");

    let (mut values, mut references) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let began = Instant::now();
        let listed = host.sandboxes(&filter).await?;
        let value = began.elapsed();
        ensure!(listed.len() == records::COUNT, "{} of {} are listed", listed.len(), records::COUNT);
        let began = Instant::now();
        for file in &files {
            std::hint::black_box(serde_json::from_slice::<serde_json::Value>(&std::fs::read(file)?)?);
        }
        let reference = began.elapsed();
        // The first round warms the page cache.
        if round > 0 {
            values.push(value.as_secs_f64() * 1e3);
            references.push(reference.as_secs_f64() * 1e3);
        }
    }
    report_percentiles("list_1000", "ms", &values, &references, [Goal::None, Goal::None]);
    report("list_1000/limit", "ms", percentile(&values, 50), LIMIT_MS, Goal::AtMost(1.0));
    Ok(())
}
