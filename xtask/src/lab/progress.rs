//! What the lab's machine tells of itself, line by line, on a port of its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use super::patience::Patience;

/// A line of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The machine's processes run.
    Beat,
    /// The test of that number begins.
    Begin(usize),
    /// It has ended, with a status.
    End(usize, i32),
    /// The whole script has ended, with a status.
    Status(i32),
}

impl Event {
    /// Anything that is not an event is `None`: the machine may have ended in the middle of a line.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let event = match words.next()? {
            "beat" => Self::Beat,
            "begin" => Self::Begin(words.next()?.parse().ok()?),
            "end" => Self::End(words.next()?.parse().ok()?, words.next()?.parse().ok()?),
            "status" => Self::Status(words.next()?.parse().ok()?),
            _ => return None,
        };
        Some(event)
    }
}

/// The reader of the file that QEMU writes the port's lines to.
#[derive(Debug)]
pub(super) struct Progress {
    file: File,
    read_bytes: u64,
    line: Vec<u8>,
}

impl Progress {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile()?, read_bytes: 0, line: Vec::new() })
    }

    /// The file, for QEMU.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The events that have come since.
    pub(super) fn read(&mut self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = self.file.read_at(&mut buffer, self.read_bytes)?;
            if count == 0 {
                return Ok(events);
            }
            self.read_bytes += count as u64;
            for &byte in &buffer[..count] {
                if byte == b'\n' {
                    events.extend(Event::parse(&String::from_utf8_lossy(&self.line)));
                    self.line.clear();
                } else {
                    self.line.push(byte);
                }
            }
        }
    }
}

/// When something was heard from the machine, and what it was doing.
#[derive(Debug)]
pub(super) struct Watch {
    patience: Patience,
    run_max: Duration,
    started: Instant,
    heard: Option<Instant>,
    /// When the test that runs began.
    test: Option<Instant>,
}

impl Watch {
    /// `run_max` is how long the machine may run where nothing else does.
    pub(super) fn new(patience: Patience, run_max: Duration, now: Instant) -> Self {
        Self { patience, run_max, started: now, heard: None, test: None }
    }

    pub(super) fn take(&mut self, event: Event, now: Instant) {
        self.heard = Some(now);
        match event {
            Event::Begin(_) => self.test = Some(now),
            Event::End(..) | Event::Status(_) => self.test = None,
            Event::Beat => {}
        }
    }

    /// Why the machine has to be ended, if it has.
    pub(super) fn overdue(&self, now: Instant) -> Option<String> {
        let seconds = |since: Instant, max: Duration| {
            let passed = now.saturating_duration_since(since);
            (passed > self.patience.times(max)).then_some(passed.as_secs())
        };
        if let Some(passed) = seconds(self.started, self.run_max) {
            return Some(format!("it had not ended after {passed} s"));
        }
        if let Some(passed) = self.test.and_then(|began| seconds(began, TEST_MAX + KILL_MAX)) {
            return Some(format!("its test ran for {passed} s and could not be killed"));
        }
        match self.heard {
            None => seconds(self.started, BOOT_MAX).map(|passed| format!("it did not start within {passed} s")),
            Some(heard) => seconds(heard, SILENCE_MAX).map(|passed| format!("it stood still for {passed} s")),
        }
    }
}

/// How long a test may run before the lab kills it. The longest takes a minute and a half on a machine without other work, and
/// took more than five on one whose processors were shared with builds that had begun later.
pub(super) const TEST_MAX: Duration = Duration::from_secs(600);
/// A start takes half a minute where nothing else runs.
const BOOT_MAX: Duration = Duration::from_secs(240);
/// A beat comes every five seconds.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// How long the lab may take to kill a test.
const KILL_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn events_come_once_and_whole() {
        let mut progress = Progress::new().unwrap();
        let mut writer = progress.file().try_clone().unwrap();
        writer.write_all(b"beat\nbegin 3\nrubbish\nend 3 1").unwrap();
        assert_eq!(progress.read().unwrap(), [Event::Beat, Event::Begin(3)]);
        writer.write_all(b"01\nstatus 0\n").unwrap();
        assert_eq!(progress.read().unwrap(), [Event::End(3, 101), Event::Status(0)]);
        assert_eq!(progress.read().unwrap(), []);
    }

    #[test]
    fn a_machine_has_bounds_for_its_start_its_silence_and_each_test() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::new(Patience::default(), Duration::from_secs(1800), start);
        assert_eq!(watch.overdue(after(239)), None);
        assert_eq!(watch.overdue(after(241)).unwrap(), "it did not start within 241 s");
        watch.take(Event::Begin(0), after(30));
        assert_eq!(watch.overdue(after(149)), None);
        assert_eq!(watch.overdue(after(151)).unwrap(), "it stood still for 121 s");
        watch.take(Event::Beat, after(689));
        assert_eq!(watch.overdue(after(690)), None);
        assert_eq!(watch.overdue(after(691)).unwrap(), "its test ran for 661 s and could not be killed");
        watch.take(Event::End(0, 0), after(692));
        assert_eq!(watch.overdue(after(693)), None);
        watch.take(Event::Beat, after(1801));
        assert_eq!(watch.overdue(after(1801)).unwrap(), "it had not ended after 1801 s");
    }
}
