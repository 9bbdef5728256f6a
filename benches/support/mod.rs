//! What the benches of this crate share: figures beside their reference, printed and kept.
//!
//! A figure without something to hold it against says little on a machine that others use too. So every bench measures
//! its reference in the same run, a round of each in turn, and it is the ratio that has to be reached.

#![allow(dead_code, reason = "each bench uses a part of this")]
#![expect(clippy::print_stdout, reason = "a bench prints")]

pub(crate) mod agent;
pub(crate) mod guest;
pub(crate) mod records;

use std::{
    fs,
    io::ErrorKind,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};

/// What a ratio of value to reference should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// It is there to be looked at.
    None,
}

/// Prints a figure, and puts it into `target/bench/summary.json` in place of an older one of its name.
pub(crate) fn report(name: &str, unit: &str, value: f64, reference: f64, goal: Goal) {
    let ratio = value / reference;
    let verdict = match goal {
        Goal::AtMost(most) if ratio <= most => format!("<= {most}: reached"),
        Goal::AtMost(most) => format!("<= {most}: MISSED"),
        Goal::AtLeast(least) if ratio >= least => format!(">= {least}: reached"),
        Goal::AtLeast(least) => format!(">= {least}: MISSED"),
        Goal::None => String::new(),
    };
    println!("{name:<28} {value:>10.2} {unit:<6} reference {reference:>10.2}  ratio {ratio:>6.3}  {verdict}");
    keep(json!({ "name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio }));
}

/// Reports the median of samples under `name`, and the 99th percentile under `name/p99`, beside those of the reference.
pub(crate) fn report_percentiles(name: &str, unit: &str, values: &[f64], references: &[f64], goals: [Goal; 2]) {
    for ((name, percent), goal) in [(name, 50), (&format!("{name}/p99"), 99)].into_iter().zip(goals) {
        let [value, reference] = [values, references].map(|samples| percentile(samples, percent));
        report(name, unit, value, reference, goal);
    }
}

/// Measures a subject and its reference in turns, so that what disturbs the one disturbs the other, and gives the
/// samples of both in nanoseconds for each of its `operations`. The first round warms up and does not count.
pub(crate) fn in_turns(
    rounds: usize,
    operations: u32,
    mut subject: impl FnMut() -> Duration,
    mut reference: impl FnMut() -> Duration,
) -> [Vec<f64>; 2] {
    let each = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(operations);
    let (mut subjects, mut references) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        // Neither is always the one that comes second, and finds what the other left in the caches.
        let swapped = round % 2 == 1;
        let early = swapped.then(&mut reference);
        let of_subject = subject();
        let of_reference = early.unwrap_or_else(&mut reference);
        if round > 0 {
            subjects.push(each(of_subject));
            references.push(each(of_reference));
        }
    }
    [subjects, references]
}

/// How long `run` takes, without the freeing of what it made.
pub(crate) fn time<T>(run: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    let made = std::hint::black_box(run());
    let elapsed = start.elapsed();
    drop(made);
    elapsed
}

/// What the bench's own program has had of the processors so far.
pub(crate) fn own_processor_time() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec())?))
}

/// The sample that so many in a hundred are not above.
pub(crate) fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).clamp(1, sorted.len());
    sorted[rank - 1]
}

/// Prints something beside a figure.
pub(crate) fn note(what: &str) {
    println!("{:<28} {what}", "");
}

/// Says that a bench did not run.
pub(crate) fn skipped(name: &str, reason: &dyn std::fmt::Display) {
    println!("skipped: {name}: {reason}");
}

fn keep(entry: Value) {
    let path = summary_path();
    let mut entries: Vec<Value> = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).expect("the summary is ours"),
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("{}: {error}", path.display()),
    };
    entries.retain(|kept| kept["name"] != entry["name"]);
    entries.push(entry);
    fs::create_dir_all(path.parent().expect("it is in a directory")).expect("the directory can be made");
    let bytes = serde_json::to_vec_pretty(&entries).expect("values are JSON");
    fs::write(&path, bytes).expect("the summary can be written");
}

/// Beside the profile's directory, wherever the build puts it: `target/release/deps/bench` -> `target/bench`.
fn summary_path() -> PathBuf {
    let program = std::env::current_exe().expect("a program has a path");
    program.ancestors().nth(3).expect("a bench is in the target directory").join("bench").join("summary.json")
}
