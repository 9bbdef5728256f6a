//! What the tests did, summed up from what Rust's test runner prints.

use std::collections::HashSet;

/// Takes the output line by line.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: u64,
    failed: u64,
    /// Tests that passed by doing nothing, with their reason.
    skipped: Vec<String>,
    /// What did not run at all.
    left_out: Vec<String>,
    lab: Option<Lab>,
    in_successes: bool,
}

/// A second run, in the lab, of tests of which some were skipped before.
#[derive(Debug, Default)]
struct Lab {
    skipped_before: Vec<String>,
    passed: HashSet<String>,
}

impl Report {
    /// Takes a line, and prints it unless a test that passed has printed it.
    pub(crate) fn show(&mut self, line: &str) {
        if self.take(line) {
            println!("{line}");
        }
    }

    /// Notes what was not run, as `NAME: REASON`.
    pub(crate) fn leave_out(&mut self, what: &str) {
        self.left_out.push(what.to_owned());
    }

    /// What is taken from here on ran in the lab: what passes there is no longer skipped.
    pub(crate) fn enter_lab(&mut self) {
        let skipped_before = std::mem::take(&mut self.skipped);
        self.passed = self.passed.saturating_sub(skipped_before.len() as u64);
        self.lab = Some(Lab { skipped_before, passed: HashSet::new() });
    }

    pub(crate) fn print(&self) {
        let skipped = self.skipped();
        for skipped in &skipped {
            println!("skipped: {skipped}");
        }
        println!("{} passed, {} failed, {} skipped", self.ran(), self.failed, skipped.len());
    }

    /// Notes a line, and tells whether to show it: what tests print is shown for those that fail alone.
    fn take(&mut self, line: &str) -> bool {
        if let Some(skipped) = skipped_test(line) {
            self.skipped.push(skipped.to_owned());
            // It is told at the end.
            return false;
        }
        if line.starts_with(TRIED_AGAIN) {
            self.failed = self.failed.saturating_sub(1);
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
        }
        if let (Some(lab), Some(test)) = (&mut self.lab, passed_test(line)) {
            lab.passed.insert(test.to_owned());
        }
        match line {
            "successes:" => self.in_successes = true,
            "failures:" => self.in_successes = false,
            _ if line.starts_with("test result: ") => self.in_successes = false,
            _ => {}
        }
        !self.in_successes
    }

    /// How many tests passed and did something.
    fn ran(&self) -> u64 {
        self.passed.saturating_sub(self.skipped.len() as u64)
    }

    fn skipped(&self) -> Vec<&str> {
        let before = self.lab.iter().flat_map(|lab| {
            let made_up = |skipped: &&String| !lab.passed.contains(skipped.split(": ").next().unwrap_or_default());
            lab.skipped_before.iter().filter(made_up)
        });
        before.chain(&self.skipped).chain(&self.left_out).map(String::as_str).collect()
    }
}

/// Begins a line that names a test which failed, ran once more, and has told its second end as well.
pub(crate) const TRIED_AGAIN: &str = "lab: its first failure is not counted: ";

/// The test in a line `test NAME ... ok`.
fn passed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... ok")
}

/// What a line says was skipped. A test that writes past the runner may do so in the middle of the runner's own line.
fn skipped_test(line: &str) -> Option<&str> {
    let (before, skipped) = line.split_once("skipped: ")?;
    (before.is_empty() || (before.starts_with("test ") && before.ends_with(" ... "))).then_some(skipped)
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
        assert_eq!((report.passed, report.failed, report.ran()), (5, 1, 4));
        assert_eq!(report.skipped(), ["a: no root"]);
        assert!(shown.contains(&"boom") && !shown.contains(&"skipped: a: no root"));
    }

    #[test]
    fn a_skip_that_is_written_past_the_runner_counts_too() {
        let mut report = Report::default();
        let output = "skipped: a: no root\ntest a ... ok\ntest b ... skipped: b: no KVM\nok\n\
            note: nothing was skipped: it ran\ntest result: ok. 3 passed; 0 failed";
        let shown: Vec<&str> = output.lines().filter(|line| report.take(line)).collect();
        assert_eq!(report.skipped(), ["a: no root", "b: no KVM"]);
        assert_eq!(report.ran(), 1);
        assert_eq!(shown.len(), 4);
    }

    #[test]
    fn a_failure_that_was_tried_again_is_not_counted() {
        let mut report = Report::default();
        let failed = "test result: FAILED. 0 passed; 1 failed; 0 ignored";
        for line in [failed, failed, "test result: ok. 1 passed; 0 failed", &format!("{TRIED_AGAIN}suite::bad")] {
            assert!(report.take(line));
        }
        assert_eq!((report.ran(), report.failed), (1, 1));
    }

    #[test]
    fn what_passes_in_the_lab_is_not_skipped() {
        let mut report = Report::default();
        for line in ["skipped: a: no KVM", "skipped: b: no root", "test result: ok. 3 passed; 0 failed"] {
            report.take(line);
        }
        report.enter_lab();
        for line in ["test a ... ok", "test result: ok. 1 passed; 0 failed"] {
            report.take(line);
        }
        report.leave_out("c: not here");
        assert_eq!(report.ran(), 2);
        assert_eq!(report.skipped(), ["b: no root", "c: not here"]);
    }

    #[test]
    fn a_test_that_is_skipped_in_the_lab_too_stays_skipped_once() {
        let mut report = Report::default();
        let line = "skipped: a: no KVM";
        for line in [line, "test result: ok. 1 passed; 0 failed"] {
            report.take(line);
        }
        report.enter_lab();
        for line in ["test a ... ok", line, "test result: ok. 1 passed; 0 failed"] {
            report.take(line);
        }
        assert_eq!(report.ran(), 0);
        assert_eq!(report.skipped(), ["a: no KVM"]);
    }
}
