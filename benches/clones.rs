//! What the second and every later sandbox of a template costs: the guest's memory that is its own, and a create.
//!
//! `clone_memory` is a clone's own memory beside that of a sandbox that shares with nobody, idle, and after a program of the
//! guest's. `clone_create` is a create and its first command while others of the template live, beside the same alone;
//! `clone_copied` is what was copied for it, and `clone_processor` this program's processor time, in which no guest runs.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use wrenn_core::{Host, Paging, Sandbox};

mod support;
use support::{Goal, own_processor_time, report, report_percentiles};

const CLONES: usize = 10;
const ROUNDS: usize = 15;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Each host has clones of its own.
    let [alone, shared] = [Host::builder().open().await?, Host::builder().open().await?];
    Sandbox::create(&alone, "base").await?.kill().await?;
    memory(&shared).await?;

    let _others = [Sandbox::create(&shared, "base").await?, Sandbox::create(&shared, "base").await?];
    let (mut values, mut references) = (Samples::default(), Samples::default());
    for round in 0..=ROUNDS {
        let reference = create(&alone).await?;
        let value = create(&shared).await?;
        anyhow::ensure!(value.paging == Paging::Mapped && reference.paging == Paging::Lazy, "they share otherwise");
        if round > 0 {
            values.push(&value);
            references.push(&reference);
        }
    }
    let none = Goal::None;
    report_percentiles("clone_create", "ms", &values.took, &references.took, [Goal::AtMost(1.0), none]);
    report_percentiles("clone_copied", "MiB", &values.copied, &references.copied, [Goal::AtMost(0.1), none]);
    report_percentiles("clone_processor", "ms", &values.processor, &references.processor, [Goal::AtMost(0.5), none]);
    Ok(())
}

/// What ten clones have of their own.
async fn memory(host: &Host) -> anyhow::Result<()> {
    let first = Sandbox::create(host, "base").await?;
    let alone = vmms()?;
    let mut clones = Vec::new();
    for _ in 0..CLONES {
        clones.push(Sandbox::create(host, "base").await?);
    }
    let [reference] = alone[..] else { anyhow::bail!("there is one VMM so far") };
    let of_clones: Vec<u32> = vmms()?.into_iter().filter(|pid| *pid != reference).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (name, line) in [("clone_memory/idle", "true"), ("clone_memory/python", "python3 -c 1")] {
        for sandbox in clones.iter().chain([&first]) {
            sandbox.exec(line).await?;
        }
        let own = of_clones.iter().map(|pid| own_mib(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
        let mean = own.iter().sum::<f64>() / f64::from(u32::try_from(own.len())?);
        report(name, "MiB", mean, own_mib(reference)?, Goal::None);
    }
    for sandbox in clones.iter().chain([&first]) {
        sandbox.kill().await?;
    }
    Ok(())
}

struct Sample {
    paging: Paging,
    took: Duration,
    processor: Duration,
    copied_bytes: u64,
}

#[derive(Default)]
struct Samples {
    took: Vec<f64>,
    processor: Vec<f64>,
    copied: Vec<f64>,
}

impl Samples {
    fn push(&mut self, sample: &Sample) {
        self.took.push(sample.took.as_secs_f64() * 1e3);
        self.processor.push(sample.processor.as_secs_f64() * 1e3);
        self.copied.push(mib(sample.copied_bytes));
    }
}

/// From the call to the first command's answer.
async fn create(host: &Host) -> anyhow::Result<Sample> {
    let (began, before) = (Instant::now(), own_processor_time()?);
    let sandbox = Sandbox::create(host, "base").await?;
    sandbox.exec("true").await?;
    let (took, processor) = (began.elapsed(), own_processor_time()? - before);
    let report = sandbox.restore_report().await?;
    sandbox.kill().await?;
    Ok(Sample { paging: report.paging, took, processor, copied_bytes: report.memory.bytes })
}

/// The VMMs that this program has started.
fn vmms() -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let parent = tail.split_whitespace().nth(1).and_then(|field| field.parse::<u32>().ok());
        if parent == Some(std::process::id()) && head.contains("(qemu") {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The guest's memory that a VMM has alone: what a clone wrote, or all that came of memory that nobody else has.
fn own_mib(pid: u32) -> anyhow::Result<f64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut lines = maps.lines().skip_while(|line| !line.contains("memfd:wrenn-"));
    let is_shared = lines.next().context("it has the guest's memory")?.contains("memfd:wrenn-shared-memory");
    let name = if is_shared { "Anonymous:" } else { "Rss:" };
    let kib = lines.find_map(|line| line.strip_prefix(name)).context("the kernel tells it")?;
    let kib: u64 = kib.trim().trim_end_matches(" kB").parse()?;
    Ok(mib(kib << 10))
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
