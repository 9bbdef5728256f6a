//! When a pipe is better left to fill.

use std::time::Duration;

use tokio::time::Instant;

/// How fast output comes through one pipe.
///
/// What comes alone is taken at once. A process that writes much in small pieces would have the agent wake up for each of
/// them, and send each by itself, at many times the cost of the bytes; so its pipe is left alone for a moment, and read
/// when it holds more.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the present window began, and what came in it.
    window: Option<(Instant, usize)>,
    /// Whether the pipe was found empty, and left alone all the same.
    is_lull: bool,
}

impl Pace {
    /// Until when to leave the pipe alone after `length` of at most `length_max` bytes were read at `now`; `None` where it
    /// is to be watched.
    pub(super) fn rest(&mut self, now: Instant, length: usize, length_max: usize) -> Option<Instant> {
        self.is_lull = false;
        let window = self.window.take().filter(|(began, _)| now - *began < WINDOW);
        let (began, bytes) = window.unwrap_or((now, 0));
        let bytes = bytes.saturating_add(length);
        self.window = Some((began, bytes));
        // A full buffer says that there may be more already.
        (bytes >= WINDOW_BYTES).then(|| if length < length_max { now + REST } else { now })
    }

    /// The same for a pipe that was found empty: whoever fills one in a moment fills it again in the next, and needs the
    /// processor for it.
    pub(super) fn lull(&mut self, now: Instant) -> Option<Instant> {
        let is_fast = self.window.is_some_and(|(began, bytes)| now - began < WINDOW && bytes >= WINDOW_BYTES);
        self.is_lull = is_fast && !self.is_lull;
        self.is_lull.then(|| now + REST)
    }
}

/// The least that counts as much, and in what time: a program that answers what it is asked stays below.
const WINDOW_BYTES: usize = 16 << 10;
const WINDOW: Duration = Duration::from_millis(8);

/// How long a pipe is left alone: with the timer's own millisecond, less than a fast writer takes to fill it.
const REST: Duration = Duration::from_millis(1);

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
        assert!((0..1000).all(|answer| pace.rest(began + ms(answer), 1 << 10, MAX).is_none()));
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
        assert_eq!(pace.lull(began + ms(60)), None, "long ago");
    }
}
