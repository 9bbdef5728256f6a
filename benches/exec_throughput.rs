//! What a command writes, on its way to the host, beside the same command's output through a plain program's pipe and TCP
//! connection, and beside a plain TCP copy from the same guest's memory, which needs neither a command nor a pipe.

use wrenn_core::{Event, Sandbox};

mod support;
use support::{Goal, guest, report_percentiles};

const ROUNDS: usize = 10;
/// A figure is the time for so many.
const BYTES: usize = 8 << 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (_host, sandbox) = guest::sandbox().await?;
    let raw = guest::RawCopy::start(&sandbox).await?;
    let [mut values, mut piped, mut copied] = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        let samples =
            [guest::ms(follow(&sandbox)).await?, guest::ms(raw.pipe(BYTES)).await?, guest::ms(raw.get(BYTES)).await?];
        if round > 0 {
            for (all, sample) in [&mut values, &mut piped, &mut copied].into_iter().zip(samples) {
                all.push(sample);
            }
        }
    }
    report_percentiles("exec_throughput", "ms", &values, &piped, [Goal::AtMost(1.25), Goal::None]);
    report_percentiles("exec_throughput/copy", "ms", &values, &copied, [Goal::None, Goal::None]);
    sandbox.kill().await?;
    Ok(())
}

async fn follow(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut child = sandbox.command("head").args(["-c", &BYTES.to_string(), "/dev/zero"]).spawn().await?;
    let mut bytes = 0;
    while let Some(event) = child.next_event().await? {
        if let Event::Stdout(output) = event {
            bytes += output.len();
        }
    }
    anyhow::ensure!(bytes == BYTES, "{bytes} bytes came");
    Ok(())
}
