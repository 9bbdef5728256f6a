//! What wrenn itself costs: its share of a create's time, and what a running sandbox costs the embedding program.
//!
//! `own_share` is the part of a create that is neither the VMM's nor the guest's, beside its goal; `own_share/of_whole` is
//! the same beside the whole create. Both are measured on a host with one sandbox, and on one with many. `create_standby` is
//! a create in a VMM that stood by, beside one that starts its VMM; what it costs to start them is not in it. `sandbox_overhead`
//! is the embedding program's memory, descriptors and threads for each sandbox that idles, and `sandbox_left` what is still
//! there after the end of all.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use wrenn_core::{Host, RestoreReport, Sandbox};

mod support;
use support::{Goal, note, percentile, report, report_percentiles};

/// How many sandboxes there are when the creates of the second measurement begin.
const MANY: usize = 100;
const ROUNDS: usize = 20;
/// What a create may take of wrenn's own time at the median.
const OWN_MS_MAX: f64 = 10.0;
const OVERHEAD_KIB_MAX: f64 = 1024.0;
const OVERHEAD_FDS_MAX: f64 = 12.0;
const OVERHEAD_THREADS_MAX: f64 = 1.0;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::builder().open().await?;
    // The first create makes what the program keeps from then on.
    Sandbox::create(&host, "base").await?.kill().await?;
    settle().await;
    overhead(&host, 10).await?;
    standby(&host).await?;
    let sandboxes = vec![Sandbox::create(&host, "base").await?];
    let at_one = shares(&host, "1").await?;
    let kept = more(&host, sandboxes, MANY).await?;
    let at_many = shares(&host, &MANY.to_string()).await?;
    end(kept).await?;
    report("own_share/many", "ms", at_many, at_one, Goal::AtMost(1.2));
    overhead(&host, 100).await
}

/// The median of wrenn's own share, in ms, and where it goes.
async fn shares(host: &Host, beside: &str) -> anyhow::Result<f64> {
    let (mut own, mut whole, mut parts) = (Vec::new(), Vec::new(), Parts::default());
    for _ in 0..ROUNDS {
        let sandbox = Sandbox::create(host, "base").await?;
        let report = sandbox.restore_report().await?;
        sandbox.kill().await?;
        own.push(ms(own_share(&report)));
        whole.push(ms(report.steps.whole));
        parts.push(&report);
    }
    let name = format!("own_share/{beside}");
    report(&name, "ms", percentile(&own, 50), OWN_MS_MAX, Goal::AtMost(1.0));
    report_percentiles(&format!("{name}/of_whole"), "ms", &own, &whole, [Goal::None, Goal::None]);
    note(&parts.line());
    Ok(percentile(&own, 50))
}

/// A create in a VMM that stood by.
async fn standby(plain: &Host) -> anyhow::Result<()> {
    let host = Host::builder().standbys(1).open().await?;
    Sandbox::create(&host, "base").await?.kill().await?;
    let (mut values, mut references) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        while host.metrics().await?.standbys == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for (host, samples, stood_by) in [(&host, &mut values, true), (plain, &mut references, false)] {
            let sandbox = Sandbox::create(host, "base").await?;
            let report = sandbox.restore_report().await?;
            anyhow::ensure!(report.phases.spawn.is_zero() == stood_by, "it was made otherwise");
            samples.push(ms(report.steps.whole));
            sandbox.kill().await?;
        }
    }
    report_percentiles("create_standby", "ms", &values, &references, [Goal::AtMost(1.0), Goal::None]);
    Ok(())
}

/// All but the steps of the VMM and of the guest.
fn own_share(report: &RestoreReport) -> Duration {
    let (steps, phases) = (report.steps, report.phases);
    steps.whole.saturating_sub(steps.agent + steps.run + phases.spawn + phases.load)
}

/// The medians of the steps.
#[derive(Default)]
struct Parts(Vec<[f64; 9]>);

impl Parts {
    const NAMES: [&str; 9] = ["load", "open", "slot", "populate", "drive", "| spawn", "devices", "run", "agent"];

    fn push(&mut self, report: &RestoreReport) {
        let (steps, phases) = (report.steps, report.phases);
        let own = [steps.load, steps.open, steps.slot, phases.populate, steps.drive];
        let [load, open, slot, populate, drive] = own.map(ms);
        let others = [phases.spawn, phases.load, steps.run, steps.agent].map(ms);
        let [spawn, devices, run, agent] = others;
        self.0.push([load, open, slot, populate, drive, spawn, devices, run, agent]);
    }

    fn line(&self) -> String {
        let median = |at: usize| percentile(&self.0.iter().map(|parts| parts[at]).collect::<Vec<_>>(), 50);
        let parts = Self::NAMES.iter().enumerate().map(|(at, name)| format!("{name} {:.1}", median(at)));
        format!("{} ms", parts.collect::<Vec<_>>().join(", "))
    }
}

/// What each of so many sandboxes costs this program, and what is left of it after their end.
async fn overhead(host: &Host, count: u32) -> anyhow::Result<()> {
    let before = Held::now()?;
    let sandboxes = more(host, Vec::new(), count as usize).await?;
    settle().await;
    let with = Held::now()?;
    end(sandboxes).await?;
    settle().await;
    let after = Held::now()?;
    let each = |with: f64, before: f64| (with - before) / f64::from(count);
    let name = format!("sandbox_overhead/{count}");
    let (memory, fds) = (each(with.kib, before.kib), each(with.fds, before.fds));
    report(&format!("{name}/memory"), "KiB", memory, OVERHEAD_KIB_MAX, Goal::AtMost(1.0));
    report(&format!("{name}/descriptors"), "", fds, OVERHEAD_FDS_MAX, Goal::AtMost(1.0));
    let threads = each(with.threads, before.threads);
    report(&format!("{name}/threads"), "", threads, OVERHEAD_THREADS_MAX, Goal::AtMost(1.0));
    let name = format!("sandbox_left/{count}");
    report(&format!("{name}/memory"), "KiB", after.kib, before.kib, Goal::None);
    report(&format!("{name}/descriptors"), "", after.fds, before.fds, Goal::AtMost(1.0));
    report(&format!("{name}/threads"), "", after.threads, before.threads, Goal::AtMost(1.0));
    Ok(())
}

async fn more(host: &Host, mut sandboxes: Vec<Sandbox>, count: usize) -> anyhow::Result<Vec<Sandbox>> {
    while sandboxes.len() < count {
        sandboxes.push(Sandbox::create(host, "base").await?);
    }
    Ok(sandboxes)
}

async fn end(sandboxes: Vec<Sandbox>) -> anyhow::Result<()> {
    for sandbox in sandboxes {
        sandbox.kill().await?;
    }
    Ok(())
}

/// Until what goes on in the background is done, and idle threads have ended.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(12)).await;
}

/// What this program has.
struct Held {
    kib: f64,
    fds: f64,
    threads: f64,
}

impl Held {
    fn now() -> anyhow::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| -> anyhow::Result<f64> {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).context("the kernel tells it")?;
            Ok(value.trim().trim_end_matches(" kB").parse()?)
        };
        let fds = u32::try_from(fs::read_dir("/proc/self/fd")?.count())?;
        Ok(Self { kib: field("RssAnon:")?, fds: f64::from(fds), threads: field("Threads:")? })
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
