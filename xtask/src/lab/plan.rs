//! The tests of a lab's run, and how far each has come, over more machines than one if it has to be.
//!
//! ```text
//! Waiting ─▶ begin ─▶ Running ─▶ end ─▶ Ended
//!    ▲                   │
//!    └─── again ◀────────┘   once, after a failure too; then Ended or NotEnded
//! ```

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::progress::Event;
use super::test_binaries::TestBinary;
use crate::report::TRIED_AGAIN;
use crate::shell;

/// Which tests there are, and what has become of each.
#[derive(Debug)]
pub(super) struct Plan {
    tests: Vec<Test>,
    /// Options of the test binaries for each run of a test, as a shell's words.
    options: String,
    test_max: Duration,
}

#[derive(Debug)]
struct Test {
    binary: String,
    name: String,
    state: State,
    /// Why each run of it did not come to an end, or failed and is not the last.
    interruptions: Vec<String>,
    /// Whether the first run failed: the machine's processor may have, and a second run tells.
    failed_once: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    /// With the status of its binary.
    Ended(i32),
    NotEnded,
}

impl Plan {
    /// Asks the binaries which tests they have; `arguments` choose among them as they do for Rust's test runner.
    /// A test that runs for longer than `test_max` is killed.
    pub(super) fn of(binaries: &[TestBinary], arguments: &[String], test_max: Duration) -> anyhow::Result<Self> {
        let mut tests = Vec::new();
        for TestBinary { name, path } in binaries {
            let mut command = Command::new(path);
            let output = command.args(["--list", "--format", "terse"]).args(arguments).output();
            let output = output.with_context(|| format!("{} could not be started", path.display()))?;
            ensure!(
                output.status.success(),
                "{name} refuses its arguments: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let list = String::from_utf8_lossy(&output.stdout);
            tests.extend(list.lines().filter_map(|line| line.strip_suffix(": test")).map(|test| Test::new(name, test)));
        }
        ensure!(!tests.is_empty(), "no test has such a name");
        let options = arguments.iter().filter(|argument| PASSED_ON.contains(&argument.as_str()));
        let options = options.map(|option| shell::quote(option)).collect::<Vec<_>>().join(" ");
        Ok(Self { tests, options, test_max })
    }

    /// A script that runs each test that waits, one after another, and says on descriptor 3 when one begins and ends.
    pub(super) fn script(&self, directory: &str) -> String {
        let waiting = self.tests.iter().enumerate().filter(|(_, test)| test.state == State::Waiting);
        let runs = waiting.map(|(number, Test { binary, name, .. })| {
            format!("run {number} {directory}/{binary} {}\n", shell::quote(name))
        });
        let seconds = self.test_max.as_secs();
        format!("test_seconds_max={seconds}\noptions=\"{}\"\n{RUN}{}", self.options, runs.collect::<String>())
    }

    /// Takes what the machine has said of a test.
    pub(super) fn take(&mut self, event: Event) {
        let (number, state) = match event {
            Event::Begin(number) => (number, State::Running),
            Event::End(number, KILLED) => {
                let why = format!("it had not ended after {} s", self.test_max.as_secs());
                return self.tests.get_mut(number).into_iter().for_each(|test| test.not_ended(&why));
            }
            Event::End(number, status) if status != 0 => {
                return self.tests.get_mut(number).into_iter().for_each(|test| test.failed(status));
            }
            Event::End(number, status) => (number, State::Ended(status)),
            Event::Beat | Event::Status(_) => return,
        };
        if let Some(test) = self.tests.get_mut(number) {
            test.state = state;
        }
    }

    /// The machine is gone, and with it the test that ran. Returns that test's name.
    pub(super) fn interrupt(&mut self, why: &str) -> Option<String> {
        let test = self.tests.iter_mut().find(|test| test.state == State::Running)?;
        test.not_ended(why);
        Some(test.to_string())
    }

    /// How many tests wait for their run.
    pub(super) fn waiting(&self) -> usize {
        self.tests.iter().filter(|test| test.state == State::Waiting).count()
    }

    /// How many runs of tests there were, with and without an end.
    pub(super) fn runs(&self) -> usize {
        let ended = self.tests.iter().filter(|test| matches!(test.state, State::Ended(_))).count();
        ended + self.tests.iter().map(|test| test.interruptions.len()).sum::<usize>()
    }

    /// The tests wait no longer.
    pub(super) fn give_up(&mut self, why: &str) {
        for test in self.tests.iter_mut().filter(|test| test.state == State::Waiting) {
            test.interruptions.push(why.to_owned());
            test.state = State::NotEnded;
        }
    }

    /// What Rust's test runner would have said of the tests that did not come to an end, and what was tried twice.
    pub(super) fn account(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for test in self.tests.iter().filter(|test| !test.interruptions.is_empty()) {
            if test.failed_once {
                lines.push(format!("{TRIED_AGAIN}{test}"));
            }
            let whys = test.interruptions.join("; then ");
            if test.state == State::NotEnded {
                lines.push(format!("test {} ... FAILED", test.name));
                lines.push(format!("    it came to no end: {whys}"));
                lines.push("test result: FAILED. 0 passed; 1 failed".to_owned());
            } else {
                lines.push(format!("lab: {test} was run twice, since {whys}"));
            }
        }
        lines
    }

    /// That of the last test that failed.
    pub(super) fn status(&self) -> i32 {
        let failed = self.tests.iter().rev().find_map(|test| match test.state {
            State::Ended(0) => None,
            State::Ended(status) => Some(status),
            State::Waiting | State::Running | State::NotEnded => Some(1),
        });
        failed.unwrap_or(0)
    }
}

impl Test {
    fn new(binary: &str, name: &str) -> Self {
        Self {
            binary: binary.to_owned(),
            name: name.to_owned(),
            state: State::Waiting,
            interruptions: Vec::new(),
            failed_once: false,
        }
    }

    fn failed(&mut self, status: i32) {
        if self.interruptions.len() + 1 < TRIES_MAX {
            self.failed_once = true;
            self.not_ended(&format!("it failed with status {status}, as told above"));
        } else {
            self.state = State::Ended(status);
        }
    }

    fn not_ended(&mut self, why: &str) {
        self.interruptions.push(why.to_owned());
        self.state = if self.interruptions.len() < TRIES_MAX { State::Waiting } else { State::NotEnded };
    }
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}::{}", self.binary, self.name)
    }
}

/// The status of a test that was killed.
const KILLED: i32 = 128 + 9;
const TRIES_MAX: usize = 2;
/// The arguments that a run of a single test gets too; the others choose among tests.
const PASSED_ON: [&str; 4] = ["--nocapture", "--no-capture", "--ignored", "--include-ignored"];
const RUN: &str = include_str!("run.sh");

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let tests = ["good", "bad", "it's"].map(|name| Test::new("suite", name));
        Plan { tests: tests.into(), options: String::new(), test_max: Duration::from_secs(300) }
    }

    #[test]
    fn a_test_without_an_end_runs_once_more_and_the_others_do_not() {
        let mut plan = plan();
        plan.take(Event::Begin(0));
        plan.take(Event::End(0, 0));
        plan.take(Event::Begin(1));
        assert_eq!(plan.interrupt("the machine crashed").as_deref(), Some("suite::bad"));
        assert_eq!(plan.interrupt("the machine crashed"), None);
        assert_eq!(plan.waiting(), 2);
        let script = plan.script("/bin");
        assert!(!script.contains("run 0") && script.contains("run 1 /bin/suite 'bad'\nrun 2"), "{script}");
        plan.take(Event::Begin(1));
        plan.take(Event::End(1, KILLED));
        plan.take(Event::Begin(2));
        plan.take(Event::End(2, 0));
        assert_eq!((plan.waiting(), plan.status()), (0, 1));
        let account = plan.account().join("\n");
        assert!(account.starts_with("test bad ... FAILED\n"), "{account}");
        assert!(account.contains("the machine crashed; then it had not ended after 300 s"), "{account}");
    }

    #[test]
    fn a_test_that_fails_runs_once_more_and_its_second_end_counts() {
        let mut plan = plan();
        for (number, second) in [(0, 0), (1, 101)] {
            plan.take(Event::Begin(number));
            plan.take(Event::End(number, 101));
            assert!(plan.script("/bin").contains(&format!("run {number}")));
            plan.take(Event::Begin(number));
            plan.take(Event::End(number, second));
        }
        plan.take(Event::End(2, 0));
        assert_eq!((plan.waiting(), plan.status()), (0, 101));
        let account = plan.account();
        for number in [0, 2] {
            assert!(account[number].starts_with(TRIED_AGAIN), "{account:?}");
            assert!(account[number + 1].ends_with("was run twice, since it failed with status 101, as told above"));
        }
    }

    #[test]
    fn a_second_run_that_passes_is_a_pass_and_is_told() {
        let mut plan = plan();
        plan.take(Event::Begin(0));
        plan.interrupt("the machine crashed");
        for number in 0..3 {
            plan.take(Event::Begin(number));
            plan.take(Event::End(number, 0));
        }
        assert_eq!(plan.status(), 0);
        assert_eq!(plan.account(), ["lab: suite::good was run twice, since the machine crashed"]);
    }

    #[test]
    fn tests_that_had_no_turn_fail_with_the_reason() {
        let mut plan = plan();
        plan.take(Event::End(0, 0));
        plan.give_up("four machines died");
        assert_eq!((plan.waiting(), plan.status()), (0, 1));
        assert_eq!(plan.account().iter().filter(|line| line.starts_with("test result: FAILED")).count(), 2);
    }

    #[test]
    fn the_script_tells_of_each_test_and_kills_one_that_does_not_end() {
        let directory = tempfile::tempdir().unwrap();
        let suite = directory.path().join("suite");
        let text = "#!/bin/sh\ncase $2 in good) exit 0;; bad) exit 101;; *) echo \"$2 hangs\"; exec sleep 60;; esac\n";
        std::fs::write(&suite, text).unwrap();
        std::fs::set_permissions(&suite, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let plan = Plan { test_max: Duration::from_secs(1), ..plan() };
        let script = plan.script(directory.path().to_str().unwrap());
        let told = directory.path().join("told");
        let line = format!("exec 3> {}\n{script}", told.display());
        let started = std::time::Instant::now();
        let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(started.elapsed() < Duration::from_secs(50), "the test that hangs was not killed");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("it's hangs") && text.contains("lab: it's has not ended after 1 s"), "{text}");
        let told = std::fs::read_to_string(told).unwrap();
        assert_eq!(told, "begin 0\nend 0 0\nbegin 1\nend 1 101\nbegin 2\nend 2 137\n");
    }
}
