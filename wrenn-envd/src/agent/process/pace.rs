//! When a pipe, or a terminal, is better left to fill.

use std::time::Duration;

use tokio::time::Instant;

/// How fast output comes through one pipe, or from one terminal.
///
/// What comes alone is taken at once. A process that writes much in small pieces would have the agent wake up for each of
/// them, and send each by itself, at many times the cost of the bytes; so its pipe is left alone for a moment, and read
/// when it holds more. The longer that goes on, the longer is the moment: a line is late by [`LONG_REST`] at most, and only
/// one that follows many others.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The present window.
    window: Option<Window>,
    /// Whether the pipe was found empty, and left alone all the same.
    is_lull: bool,
    /// How many rests there were since it was last watched, and when the last one began.
    rests: u32,
    rested: Option<Instant>,
}

/// What came in a short time.
#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    bytes: usize,
    pieces: u32,
}

impl Window {
    fn is_fast(&self, now: Instant) -> bool {
        now - self.began < WINDOW && (self.bytes >= WINDOW_BYTES || self.pieces >= WINDOW_PIECES)
    }
}

impl Pace {
    /// Until when to leave the pipe alone after `length` of at most `length_max` bytes were read at `now`; `None` where it
    /// is to be watched.
    pub(super) fn rest(&mut self, now: Instant, length: usize, length_max: usize) -> Option<Instant> {
        self.is_lull = false;
        let goes_on = self.rested.take().is_some_and(|rested| now - rested < WINDOW);
        let window = self.window.take().filter(|window| now - window.began < WINDOW);
        let mut window = window.unwrap_or(Window { began: now, bytes: 0, pieces: 0 });
        window.bytes = window.bytes.saturating_add(length);
        // What lay there after a rest may be many pieces.
        window.pieces += if goes_on { WINDOW_PIECES } else { 1 };
        self.window = Some(window);
        if !window.is_fast(now) {
            self.rests = 0;
            return None;
        }
        self.rests = self.rests.saturating_add(1);
        self.rested = Some(now);
        // A full buffer says that there may be more already.
        let is_long = length < WINDOW_BYTES && self.rests > SHORT_RESTS;
        Some(match length < length_max {
            false => now,
            true if is_long => now + LONG_REST,
            true => now + REST,
        })
    }

    /// What comes next was asked for, and is waited for.
    pub(super) fn ask(&mut self) {
        *self = Self::default();
    }

    /// The same for a pipe that was found empty: whoever fills one in a moment fills it again in the next, and needs the
    /// processor for it.
    pub(super) fn lull(&mut self, now: Instant) -> Option<Instant> {
        let is_fast = self.window.is_some_and(|window| window.is_fast(now));
        self.is_lull = is_fast && !self.is_lull;
        if !self.is_lull {
            (self.rests, self.rested) = (0, None);
        }
        self.is_lull.then(|| now + REST)
    }
}

/// The least that counts as much, in bytes or in pieces, and in what time.
const WINDOW_BYTES: usize = 16 << 10;
const WINDOW_PIECES: u32 = 8;
const WINDOW: Duration = Duration::from_millis(16);

/// How long a pipe is left alone: with the timer's own millisecond, less than a fast writer takes to fill it.
const REST: Duration = Duration::from_millis(1);

/// How long it is left alone once many rests have each found a little.
const LONG_REST: Duration = Duration::from_millis(4);
const SHORT_RESTS: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 64 << 10;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn what_comes_after_quiet_is_taken_at_once() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        assert_eq!(pace.rest(began, 100, MAX), None);
        for second in 1..100 {
            // Each is watched for anew, however much came before.
            assert_eq!(pace.rest(began + ms(1000 * second), WINDOW_BYTES - 1, MAX), None);
        }
    }

    #[test]
    fn questions_and_answers_are_never_left_waiting() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        for answer in 0..1000 {
            pace.ask();
            assert_eq!(pace.rest(began + ms(answer), 1 << 10, MAX), None);
        }
    }

    #[test]
    fn small_pieces_of_much_are_gathered() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        let rests: Vec<_> = (0..8).map(|_| pace.rest(began, 4 << 10, MAX)).collect();
        assert_eq!(rests[..3], [None; 3]);
        assert_eq!(rests[3..], [Some(began + REST); 5]);
        assert_eq!(pace.rest(began + REST, MAX, MAX), Some(began + REST), "there may be more");
        assert_eq!(pace.rest(began + ms(100), 10, MAX), None, "the flood is over");
    }

    #[test]
    fn lines_that_come_one_by_one_are_gathered_longer_and_longer() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        let (mut now, mut reads) = (began, 0);
        // One line in half a millisecond; a pipe that is watched is read for each of them.
        while now < began + ms(1000) {
            reads += 1;
            now = pace.rest(now, 6, MAX).unwrap_or_else(|| now + ms(1) / 2);
        }
        assert!(reads < 300, "{reads} reads of 2000 lines");
        assert_eq!(pace.rest(now + ms(50), 6, MAX), None, "they have stopped");
    }

    #[test]
    fn some_lines_together_are_taken_at_once() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        assert!((0..100).all(|tick| (0..7).all(|_| pace.rest(began + ms(tick * 20), 80, MAX).is_none())));
    }

    #[test]
    fn an_empty_pipe_is_left_alone_once_after_much_came() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        assert_eq!(pace.lull(began), None, "nothing came");
        pace.rest(began, MAX, MAX);
        assert_eq!(pace.lull(began), Some(began + REST));
        assert_eq!(pace.lull(began + REST), None, "it was over");
        pace.rest(began + REST, MAX, MAX);
        assert_eq!(pace.lull(began + REST), Some(began + REST + REST));
        pace.rest(began + ms(20), 10, MAX);
        assert_eq!(pace.lull(began + ms(20)), None, "little came");
        pace.rest(began + ms(40), MAX, MAX);
        assert_eq!(pace.lull(began + ms(80)), None, "long ago");
    }
}
