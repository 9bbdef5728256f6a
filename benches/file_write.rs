//! A file of the guest that is written, beside a plain TCP copy into a new file of the same file system.
//!
//! `file_write/copy` is the same beside a plain TCP copy that is forgotten: what a file costs for itself is the pages that
//! the guest's kernel has to find and clear for it, which no copy into one can do without.

use tokio::io::AsyncReadExt as _;
use wrenn_core::Sandbox;

mod support;
use support::{Goal, guest, report_percentiles};

const ROUNDS: usize = 10;
/// A figure is the time for so many.
const BYTES: usize = 32 << 20;
/// In the guest's memory: it is the way that is measured, and not the drive.
const PATH: &str = "/dev/shm/file";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (_host, sandbox) = guest::sandbox().await?;
    let raw = guest::RawCopy::start(&sandbox).await?;
    let (mut values, mut references, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let reference = guest::ms(raw.save(BYTES)).await?;
        let value = guest::ms(copy(&sandbox)).await?;
        let forgotten = guest::ms(raw.put(BYTES)).await?;
        if round > 0 {
            values.push(value);
            references.push(reference);
            copies.push(forgotten);
        }
    }
    report_percentiles("file_write/copy", "ms", &values, &copies, [Goal::None, Goal::None]);
    // Four fifths of the speed.
    report_percentiles("file_write", "ms", &values, &references, [Goal::AtMost(1.25), Goal::None]);
    sandbox.kill().await?;
    Ok(())
}

async fn copy(sandbox: &Sandbox) -> anyhow::Result<()> {
    let bytes = sandbox.files().write_from(PATH, tokio::io::repeat(1).take(BYTES as u64)).await?;
    anyhow::ensure!(bytes == BYTES as u64, "{bytes} bytes went");
    Ok(())
}
