//! A kill on a host that has a thousand paused sandboxes.
//!
//! The reference is a kill on a host that has none, in turns with the other: what a kill leaves to collect is collected
//! when it has been answered, so how many records there are should not be felt.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tempfile::TempDir;
use wrenn_core::{Host, Sandbox};

mod support;
use support::{Goal, records, report_percentiles};

const ROUNDS: usize = 15;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (_without, empty) = host().await?;
    let (dir, full) = host().await?;
    records::write(dir.path(), &booted_generation(dir.path())?)?;
    let (mut values, mut references) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let value = kill_ms(&full).await?;
        let reference = kill_ms(&empty).await?;
        // In the first round the records are read for the first time.
        if round > 0 {
            values.push(value);
            references.push(reference);
        }
    }
    full.collect_garbage().await?;
    ensure!(full.metrics().await?.paused == records::COUNT as u64, "records were lost");
    report_percentiles("kill_1000", "ms", &values, &references, [Goal::AtMost(1.2), Goal::None]);
    Ok(())
}

/// A host of its own with the images of the default one, which has booted its template.
async fn host() -> anyhow::Result<(TempDir, Host)> {
    let shared = wrenn_core::default_data_dir();
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(&shared)?;
    symlink(shared.join("images"), dir.path().join("images"))?;
    let host = Host::open(dir.path()).await?;
    Sandbox::create(&host, "base").await?.kill().await?;
    Ok((dir, host))
}

/// What the one template of a data directory was booted into.
fn booted_generation(data_dir: &Path) -> anyhow::Result<String> {
    let record = std::fs::read_dir(data_dir.join("booted"))?.next().context("no template was booted")??;
    let record: Value = serde_json::from_slice(&std::fs::read(record.path())?)?;
    Ok(record["generation"].as_str().context("the record names no generation")?.to_owned())
}

async fn kill_ms(host: &Host) -> anyhow::Result<f64> {
    let sandbox = Sandbox::create(host, "base").await?;
    let began = Instant::now();
    sandbox.kill().await?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
