//! 20,000 short lines of a command, each written by itself, beside the same through a pipe in the guest.
//!
//! `lines/exec` collects them, `lines/spawn` takes them as events, and `lines/pty` reads them from a terminal. The reference
//! is the same loop, whose lines another process of the guest reads.

use std::time::Instant;

use anyhow::ensure;
use wrenn_core::{Event, PtySize, Sandbox};

mod support;
use support::{Goal, guest, report_percentiles};

const ROUNDS: usize = 7;
const LINES: usize = 20_000;
const LOOP: &str = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (_host, sandbox) = guest::sandbox().await?;
    let mut references = Vec::new();
    let mut values = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        let reference = seconds(piped(&sandbox)).await?;
        let taken = [
            seconds(collected(&sandbox)).await?,
            seconds(taken_as_events(&sandbox)).await?,
            seconds(typed(&sandbox)).await?,
        ];
        if round > 0 {
            references.push(reference);
            values.iter_mut().zip(taken).for_each(|(values, taken)| values.push(taken));
        }
    }
    for (name, values) in ["lines/exec", "lines/spawn", "lines/pty"].into_iter().zip(&values) {
        report_percentiles(name, "s", values, &references, [Goal::AtMost(1.3), Goal::None]);
    }
    sandbox.kill().await?;
    Ok(())
}

async fn seconds(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<f64> {
    let began = Instant::now();
    work.await?;
    Ok(began.elapsed().as_secs_f64())
}

async fn piped(sandbox: &Sandbox) -> anyhow::Result<()> {
    let output = sandbox.exec(&format!("{{ {LOOP}; }} | wc -l")).await?;
    ensure!(output.stdout.trim_ascii() == LINES.to_string().as_bytes(), "{output:?}");
    Ok(())
}

async fn collected(sandbox: &Sandbox) -> anyhow::Result<()> {
    let output = sandbox.exec(LOOP).await?;
    let lines = lines_of(&output.stdout);
    ensure!(lines == LINES, "{lines} lines");
    Ok(())
}

async fn taken_as_events(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut child = sandbox.command("/bin/sh").args(["-c", LOOP]).spawn().await?;
    let mut lines = 0;
    while let Some(event) = child.next_event().await? {
        if let Event::Stdout(bytes) = event {
            lines += lines_of(&bytes);
        }
    }
    ensure!(lines == LINES, "{lines} lines");
    Ok(())
}

async fn typed(sandbox: &Sandbox) -> anyhow::Result<()> {
    let size = PtySize::default();
    let mut child = sandbox.command("/bin/sh").args(["-c", LOOP]).pty(size).spawn().await?;
    let mut lines = 0;
    while let Some(event) = child.next_event().await? {
        if let Event::Pty(bytes) = event {
            lines += lines_of(&bytes);
        }
    }
    ensure!(lines == LINES, "{lines} lines");
    Ok(())
}

fn lines_of(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}
