//! A hundred sandboxes at once: creates from one template, and the children of one fork.
//!
//! The reference is the processor time of one create, of this program and of the VMM with its guest, a hundred times over the
//! processors: as long as a hundred take where nothing waits. `/ready` is when a child was handed over, p50 and p99, beside
//! the same of a hundred that come at an even pace. `/processor` is what the hundred took until the last was there, with what
//! the first did meanwhile. `fork_100/stop` is the parent's stop, beside that of a fork of one.
//!
//! `WRENN_FAN_OUT=COUNT,AT_ONCE` measures other numbers.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::unistd::{SysconfVar, sysconf};
use wrenn_core::{Host, Sandbox, Sandboxes};

mod support;
use support::{Goal, note, own_processor_time, percentile, report};

const COUNT: usize = 100;
const ROUNDS: usize = 10;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let wanted = std::env::var("WRENN_FAN_OUT").ok();
    let (count, at_once) = match &wanted {
        Some(wanted) => {
            let (count, at_once) = wanted.split_once(',').context("WRENN_FAN_OUT is COUNT,AT_ONCE")?;
            (count.parse()?, Some(at_once.parse()?))
        }
        None => (COUNT, None),
    };
    let host = Host::builder();
    let host = at_once.map_or_else(Host::builder, |at_once| host.starts_at_once(at_once)).open().await?;
    // Those that are measured share their memory, as all but the first do.
    let parent = Sandbox::create(&host, "base").await?;
    parent.exec("true").await?;
    let _other = Sandbox::create(&host, "base").await?;
    let one = one(&host).await?;
    note(&format!("one create: {:.0} ms of processor time", one.as_secs_f64() * 1e3));

    let began = Began::now()?;
    let sandboxes = Sandbox::builder(&host, "base").create_many(count).await?;
    burst(&format!("create_{count}"), began, sandboxes, one).await?;

    parent.fork(1).await?.remove(0)?.kill().await?;
    let of_one = stopped_for(&parent).await?;
    let began = Began::now()?;
    let children = parent.fork_stream(count).await?;
    burst(&format!("fork_{count}"), began, children, one).await?;
    report(&format!("fork_{count}/stop"), "ms", stopped_for(&parent).await?, of_one, Goal::AtMost(1.5));
    Ok(())
}

/// The processor time of a create while others of the template live.
async fn one(host: &Host) -> anyhow::Result<Duration> {
    let mut taken = Vec::new();
    for round in 0..=ROUNDS {
        let before = own_processor_time()?;
        let sandbox = Sandbox::create(host, "base").await?;
        let took = processor_time_of(sandbox.vmm_pid().await?)? + own_processor_time()?.saturating_sub(before);
        sandbox.kill().await?;
        // What ends of the one is not to be counted with the next.
        tokio::time::sleep(Duration::from_millis(200)).await;
        if round > 0 {
            taken.push(took.as_secs_f64());
        }
    }
    let len = u32::try_from(taken.len())?;
    Ok(Duration::from_secs_f64(taken.iter().sum::<f64>() / f64::from(len)))
}

/// What is so before a burst.
struct Began {
    at: Instant,
    own: Duration,
    /// Of all processors of the machine.
    busy: Duration,
    resident_bytes: u64,
}

impl Began {
    fn now() -> anyhow::Result<Self> {
        let (own, busy, resident_bytes) = (own_processor_time()?, busy()?, resident_bytes()?);
        Ok(Self { at: Instant::now(), own, busy, resident_bytes })
    }
}

async fn burst(name: &str, began: Began, mut sandboxes: Sandboxes, one: Duration) -> anyhow::Result<()> {
    let count = sandboxes.left();
    let (mut made, mut ready, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(sandbox) = sandboxes.next().await {
        made.push(sandbox?);
        ready.push(began.at.elapsed().as_secs_f64());
        resident.push(resident_bytes()?);
    }
    let (took, busy) = (began.at.elapsed().as_secs_f64(), busy()?.saturating_sub(began.busy));
    let mut processor = own_processor_time()?.saturating_sub(began.own);
    for sandbox in &made {
        processor += processor_time_of(sandbox.vmm_pid().await?)?;
    }
    let processors = f64::from(u32::try_from(std::thread::available_parallelism()?.get())?);
    let all = one.as_secs_f64() * f64::from(u32::try_from(count)?);
    report(name, "s", took, all / processors, Goal::AtMost(1.15));
    for (percent, part) in [(50, 0.5), (99, 0.99)] {
        let name = format!("{name}/ready/p{percent}");
        report(&name, "s", percentile(&ready, percent), all / processors * part, Goal::None);
    }
    report(&format!("{name}/processor"), "s", processor.as_secs_f64(), all, Goal::None);
    let others = busy.saturating_sub(processor).as_secs_f64() / (took * processors) * 100.0;
    note(&format!("the kernel's own threads and other programs had {others:.0} % of the processors meanwhile"));
    idle(&made).await?;
    let mib = |bytes: u64| bytes >> 20;
    let most = resident.iter().copied().max().unwrap_or_default();
    for sandbox in &made {
        sandbox.kill().await?;
    }
    drop(made);
    let [before, most, after] = [began.resident_bytes, most, resident_bytes()?].map(mib);
    note(&format!(
        "this program's memory: {before} MiB before, at most {most} meanwhile, {after} once all were killed"
    ));
    Ok(())
}

/// What so many take that do nothing.
async fn idle(made: &[Sandbox]) -> anyhow::Result<()> {
    let mut samples = [Duration::ZERO; 2];
    for (number, sample) in samples.iter_mut().enumerate() {
        for sandbox in made {
            *sample += processor_time_of(sandbox.vmm_pid().await?)?;
        }
        if number == 0 {
            tokio::time::sleep(IDLE).await;
        }
    }
    let part = samples[1].saturating_sub(samples[0]).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    note(&format!("{} that do nothing take {part:.0} % of a processor", made.len()));
    Ok(())
}

async fn stopped_for(sandbox: &Sandbox) -> anyhow::Result<f64> {
    Ok(sandbox.save_report().await?.context("it was saved")?.stopped_for.as_secs_f64() * 1e3)
}

/// From its start on, to the nanosecond.
fn processor_time_of(pid: u32) -> anyhow::Result<Duration> {
    let mut time = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let ran = fs::read_to_string(task?.path().join("schedstat"))?;
        time += Duration::from_nanos(ran.split_whitespace().next().context("the kernel tells it")?.parse()?);
    }
    Ok(time)
}

/// How long the machine's processors have run anything, added up.
fn busy() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("it has a line")?;
    let fields = line.split_whitespace().skip(1).map(str::parse::<u64>).collect::<Result<Vec<_>, _>>()?;
    // All but `idle` and `iowait`; a guest's time is in `user`.
    let ticks: u64 =
        fields.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, ticks)| ticks).sum();
    let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK)?.context("there is one")?)?;
    Ok(Duration::from_millis(ticks * 1000 / per_second))
}

fn resident_bytes() -> anyhow::Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split_whitespace().nth(1).context("it has a second field")?.parse()?;
    Ok(pages * 4096)
}

const IDLE: Duration = Duration::from_secs(3);
