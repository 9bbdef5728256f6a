//! `cargo xtask fuzz`: libFuzzer, on what of wrenn takes bytes that strangers send.
//!
//! The compiler's coverage passes are reached by its stable options, so that neither `cargo-fuzz` nor a nightly compiler is
//! needed. There is no address sanitizer, which does need one: what is fuzzed is safe Rust.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::shell;

/// Fuzzes for `minutes`, which the targets share.
pub(crate) fn run(minutes: u64, only: &[String]) -> anyhow::Result<()> {
    let seeds = shell::workspace().join("fuzz/corpus");
    let mut targets = subdirectories(&seeds)?;
    if let Some(unknown) = only.iter().find(|name| !targets.contains(name)) {
        bail!("no target is called {unknown}; there are {}", targets.join(", "));
    }
    targets.retain(|name| only.is_empty() || only.contains(name));
    ensure!(!targets.is_empty(), "{} has no targets", seeds.display());
    println!("fuzz: building");
    let fuzzer = Fuzzer { binary: build()?, seeds, directory: shell::target().join("fuzz") };
    let seconds = minutes * 60 / targets.len() as u64;
    targets.iter().try_for_each(|target| fuzzer.run(target, seconds))
}

fn build() -> anyhow::Result<PathBuf> {
    let directory = shell::target().join("fuzz/build");
    let directory = directory.to_str().context("the target directory's path is no UTF-8")?;
    let arguments = ["build", "--quiet", "--package", "wrenn-fuzz", "--profile", "fuzz", "--target", shell::TARGET];
    shell::cargo_with(&arguments, &[("RUSTFLAGS", FLAGS), ("CARGO_TARGET_DIR", directory)])?;
    Ok(Path::new(directory).join(shell::TARGET).join("fuzz/wrenn-fuzz"))
}

/// Coverage by counters, and the operands of comparisons.
const FLAGS: &str = "--cfg wrenn_fuzz -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

struct Fuzzer {
    binary: PathBuf,
    seeds: PathBuf,
    /// For what it finds: later runs go on from there.
    directory: PathBuf,
}

impl Fuzzer {
    fn run(&self, target: &str, seconds: u64) -> anyhow::Result<()> {
        let kept = self.directory.join("kept").join(target);
        let broken = self.directory.join("broken").join(target);
        fs::create_dir_all(&kept).and_then(|()| fs::create_dir_all(&broken)).context("no room for what is found")?;
        let log = self.directory.join(format!("{target}.log"));
        let output = File::create(&log).with_context(|| format!("{} cannot be written", log.display()))?;
        let mut command = Command::new(&self.binary);
        // A backtrace would hide the reason, and running the input again has it too.
        command.env("WRENN_FUZZ", target).env("RUST_BACKTRACE", "0").arg(&kept).arg(self.seeds.join(target));
        command.arg(format!("-artifact_prefix={}/", broken.display()));
        // No time at all means no end to libFuzzer.
        command.arg(if seconds == 0 { "-runs=0".to_owned() } else { format!("-max_total_time={seconds}") });
        command.args(LIMITS).stdout(output.try_clone()?).stderr(output);
        let status = command.status().context("the fuzzer could not be started")?;
        let said = fs::read(&log).with_context(|| format!("{} cannot be read", log.display()))?;
        let said = String::from_utf8_lossy(&said);
        if status.success() {
            println!("fuzz: {target}: {} inputs in {seconds} s, and nothing broke", executed(&said).unwrap_or("no"));
            return Ok(());
        }
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].iter().for_each(|line| println!("{line}"));
        match artifact(&said) {
            Some(input) => bail!(
                "{target} broke. To have it again:\n    cargo run --package wrenn-fuzz -- {target} {input}\n\
                 To keep it as a test, copy it to fuzz/corpus/{target}."
            ),
            None => bail!("the fuzzer of {target} failed ({status}); {} has what it said", log.display()),
        }
    }
}

/// What one input may cost: a second is too long for any of them, and half a gigabyte too much.
const LIMITS: [&str; 4] = ["-timeout=10", "-rss_limit_mb=1024", "-malloc_limit_mb=512", "-print_final_stats=1"];

const LINES_SHOWN: usize = 40;

/// How many inputs libFuzzer says that it tried.
fn executed(said: &str) -> Option<&str> {
    said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")).map(str::trim)
}

/// The file in which libFuzzer says that it left an input.
fn artifact(said: &str) -> Option<&str> {
    said.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, file)| file.trim())
}

fn subdirectories(directory: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("{} cannot be listed", directory.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let said = "artifact_prefix='target/fuzz/broken/header/'; Test unit written to target/fuzz/broken/header/crash-1\n\
            stat::number_of_executed_units: 4096\nstat::average_exec_per_sec:     4096\n";
        assert_eq!(artifact(said), Some("target/fuzz/broken/header/crash-1"));
        assert_eq!(executed(said), Some("4096"));
        assert_eq!((artifact("nothing"), executed("nothing")), (None, None));
    }
}
