//! A file of the guest that is read, beside a plain TCP copy from the same guest's memory.
//!
//! `file_read/file` is the same beside a plain TCP copy of a file, which has to be read there, too.

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
    // Not zeros, which would be a hole, and in the page cache.
    sandbox.exec(&format!("head -c {BYTES} /dev/urandom > {PATH}; cat {PATH} >/dev/null")).await?;
    let raw = guest::RawCopy::start(&sandbox).await?;
    raw.save(BYTES).await?;
    let (mut values, mut references, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let reference = guest::ms(raw.get(BYTES)).await?;
        let value = guest::ms(copy(&sandbox)).await?;
        let file = guest::ms(raw.load(BYTES)).await?;
        if round > 0 {
            values.push(value);
            references.push(reference);
            files.push(file);
        }
    }
    report_percentiles("file_read/file", "ms", &values, &files, [Goal::None, Goal::None]);
    // Four fifths of the speed.
    report_percentiles("file_read", "ms", &values, &references, [Goal::AtMost(1.25), Goal::None]);
    sandbox.kill().await?;
    Ok(())
}

async fn copy(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut reader = sandbox.files().open(PATH).await?;
    let bytes = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await?;
    anyhow::ensure!(bytes == BYTES as u64, "{bytes} bytes came");
    Ok(())
}
