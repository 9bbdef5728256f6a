//! `cargo xtask test`: the tests, and by name what was skipped.

use std::io::{BufRead, BufReader};

use anyhow::{Context, ensure};

use crate::{setup, shell};

pub(crate) async fn run(quick: bool, filter: &[String]) -> anyhow::Result<()> {
    if !quick {
        setup::run().await?;
    }
    let mut command = shell::cargo_command();
    command.args(["test", "--workspace", "--all-features", "--no-fail-fast"]).args(filter);
    // One pipe, so that the lines of both streams stay in order.
    let (output, ours) = std::io::pipe().context("no pipe for the tests' output")?;
    command.args(["--", "--show-output"]).stdout(ours.try_clone()?).stderr(ours);
    if quick {
        command.env("WRENN_TEST_VM", "0");
    }
    let mut child = command.spawn().context("cargo could not be started")?;
    // The command holds the pipe's other end, whose closing ends the reading.
    drop(command);
    let mut report = Report::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("the tests' output could not be read")?;
        if report.take(&line) {
            println!("{line}");
        }
    }
    let status = child.wait()?;
    report.print();
    ensure!(status.success(), "tests failed ({status})");
    Ok(())
}

/// Sums up what cargo's test runner prints.
#[derive(Default)]
struct Report {
    passed: u64,
    failed: u64,
    skipped: Vec<String>,
    in_successes: bool,
}

impl Report {
    /// Notes a line, and tells whether to show it: what tests print is shown for those that fail alone.
    fn take(&mut self, line: &str) -> bool {
        if let Some(skipped) = line.strip_prefix("skipped: ") {
            self.skipped.push(skipped.to_owned());
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
        }
        match line {
            "successes:" => self.in_successes = true,
            "failures:" => self.in_successes = false,
            _ if line.starts_with("test result: ") => self.in_successes = false,
            _ => {}
        }
        !self.in_successes
    }

    fn print(&self) {
        for skipped in &self.skipped {
            println!("skipped: {skipped}");
        }
        let ran = self.passed.saturating_sub(self.skipped.len() as u64);
        println!("{ran} passed, {} failed, {} skipped", self.failed, self.skipped.len());
    }
}

fn count(counts: &str, word: &str) -> u64 {
    let part = counts.split([';', '.']).find(|part| part.trim_end().ends_with(word));
    part.and_then(|part| part.split_whitespace().rev().nth(1)).and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_and_skips_are_named() {
        let mut report = Report::default();
        let output = "running 2 tests\nsuccesses:\n\n---- a stdout ----\nskipped: a: no root\n\nsuccesses:\n    a\n\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            failures:\nboom\ntest result: FAILED. 3 passed; 1 failed; 0 ignored";
        let shown: Vec<&str> = output.lines().filter(|line| report.take(line)).collect();
        assert_eq!((report.passed, report.failed), (5, 1));
        assert_eq!(report.skipped, ["a: no root"]);
        assert!(shown.contains(&"boom") && !shown.contains(&"skipped: a: no root"));
    }
}
