//! What a build tells, as far as it is kept.

use serde::{Deserialize, Serialize};

/// What was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// How much it matters.
    pub level: Level,
    /// Of which step it is, by the name that the recipe's client has for it.
    pub step: Option<String>,
    /// The text.
    pub message: String,
}

/// How much something matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// For whoever looks for an error.
    Debug,
    /// As expected.
    Info,
    /// Perhaps not as expected.
    Warn,
    /// Why it failed.
    Error,
}

/// A log that takes only so much.
#[derive(Debug, Default)]
pub(super) struct Log {
    entries: Vec<Entry>,
    bytes: usize,
    is_cut: bool,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.message.len() + ENTRY_BYTES
    }
}

impl Level {
    /// The name of it in answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    /// The level of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Debug, Self::Info, Self::Warn, Self::Error].into_iter().find(|level| level.name() == name)
    }
}

impl Log {
    pub(super) fn of(entries: Vec<Entry>) -> Self {
        let bytes = entries.iter().map(Entry::bytes).sum();
        Self { entries, bytes, is_cut: false }
    }

    /// The last entries, as many as take so many bytes. Where others came before them, the first one says so.
    pub(super) fn tail(&self, bytes_max: usize) -> Vec<Entry> {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.bytes();
            bytes <= bytes_max
        };
        let mut tail: Vec<Entry> = self.entries.iter().rev().take_while(fits).cloned().collect();
        if let Some(earliest) = tail.last().filter(|_| tail.len() < self.entries.len()) {
            let message = "earlier entries were not kept at the server's end".to_owned();
            tail.push(Entry { at_ms: earliest.at_ms, level: Level::Warn, step: None, message });
        }
        tail.reverse();
        tail
    }

    /// Adds an entry. Of those that are too many, errors alone are kept.
    pub(super) fn add(&mut self, at_ms: i64, level: Level, step: Option<&str>, message: &str) {
        let is_full = self.bytes >= BYTES_MAX || self.entries.len() >= ENTRIES_MAX;
        if is_full && level < Level::Error {
            if !std::mem::replace(&mut self.is_cut, true) {
                self.push(at_ms, Level::Warn, None, "the log is longer, and the rest of it is not kept");
            }
            return;
        }
        self.push(at_ms, level, step, message);
    }

    fn push(&mut self, at_ms: i64, level: Level, step: Option<&str>, message: &str) {
        let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
        let message = message.get(..end).unwrap_or_default().to_owned();
        let entry = Entry { at_ms, level, step: step.map(str::to_owned), message };
        self.bytes += entry.bytes();
        self.entries.push(entry);
    }

    pub(super) fn page(&self, least: Level, skipped: usize, len_max: usize) -> Vec<Entry> {
        self.entries.iter().filter(|entry| entry.level >= least).skip(skipped).take(len_max).cloned().collect()
    }

    pub(super) fn of_step(&self, step: &str, len_max: usize) -> Vec<Entry> {
        let of_it = self.entries.iter().rev().filter(|entry| entry.step.as_deref() == Some(step));
        let mut last: Vec<Entry> = of_it.take(len_max).cloned().collect();
        last.reverse();
        last
    }
}

const BYTES_MAX: usize = 1 << 20;
const ENTRIES_MAX: usize = 10_000;
const MESSAGE_BYTES_MAX: usize = 8 << 10;
/// What an entry takes besides its message.
const ENTRY_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_giant_log_is_cut_once_and_has_its_error() {
        let mut log = Log::default();
        for number in 0..30_000 {
            log.add(number, Level::Info, Some("1"), &"x".repeat(100));
        }
        log.add(1, Level::Error, Some("1"), &"\u{e9}".repeat(MESSAGE_BYTES_MAX));
        let all = log.page(Level::Debug, 0, usize::MAX);
        assert!(all.len() < ENTRIES_MAX && log.bytes < BYTES_MAX + 2 * MESSAGE_BYTES_MAX, "{}", all.len());
        let cuts: Vec<_> = all.iter().filter(|entry| entry.message.contains("longer")).collect();
        assert_eq!(cuts.len(), 1);
        assert_eq!(all.last().map(|entry| entry.level), Some(Level::Error));
        assert_eq!(log.page(Level::Warn, 1, 10).len(), 1);
        assert_eq!(log.of_step("1", 2).len(), 2);
    }
}
