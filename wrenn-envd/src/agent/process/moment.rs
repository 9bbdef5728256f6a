//! For clients who wait for a process's end alone.

use std::{convert::Infallible, time::Duration};

use tokio::sync::oneshot;

/// The first moment of a process that mostly ends within it. What it writes stays in the pipes, and nothing of it is told:
/// its start, its output and its end go out together, at the cost of one. Dropping it says that it is over.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) length: Duration,
    _over: oneshot::Sender<Infallible>,
}

/// Resolves, with an error, when the moment is over.
pub(super) type Over = oneshot::Receiver<Infallible>;

impl Moment {
    /// Of a process that took so long to start: one that does little takes a few times that in all, on a quick machine as on
    /// an emulated one. One that writes more than a pipe holds has to wait for its end, once.
    pub(super) fn of(start: Duration) -> (Self, Over) {
        let (over, is_over) = oneshot::channel();
        (Self { length: (start * STARTS).clamp(LENGTH_MIN, LENGTH_MAX), _over: over }, is_over)
    }
}

const STARTS: u32 = 8;
const LENGTH_MIN: Duration = Duration::from_millis(2);
const LENGTH_MAX: Duration = Duration::from_millis(20);
