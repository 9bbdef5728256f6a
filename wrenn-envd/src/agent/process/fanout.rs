use std::{
    collections::VecDeque,
    process::ExitStatus,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::mpsc;

/// A piece of a process's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finish {
    pub(super) status: ExitStatus,
    /// Whether it was killed because its time was up.
    pub(super) timed_out: bool,
}

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Output(Output),
    /// The last one.
    Finish(Finish),
}

/// Hands a process's output to whoever is attached.
#[derive(Debug)]
pub(super) struct Fanout {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    readers: Vec<mpsc::Sender<Event>>,
    /// What nobody was there to read.
    backlog: VecDeque<Output>,
    backlog_bytes: usize,
    is_finished: bool,
}

impl Output {
    fn len(&self) -> usize {
        match self {
            Self::Stdout(bytes) | Self::Stderr(bytes) => bytes.len(),
        }
    }
}

impl Fanout {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default() }
    }

    /// Attaches a reader: first what nobody has read, then what comes. `None` once the process has ended.
    pub(super) fn attach(&self) -> Option<(Vec<Output>, mpsc::Receiver<Event>)> {
        let mut state = self.lock();
        if state.is_finished {
            return None;
        }
        let (sender, receiver) = mpsc::channel(READER_QUEUE_MAX);
        state.readers.push(sender);
        state.backlog_bytes = 0;
        Some((state.backlog.drain(..).collect(), receiver))
    }

    /// Waits for the slowest reader's queue. Keeps the output when there is no reader.
    pub(super) async fn deliver(&self, output: Output) {
        for reader in self.readers_or_keep(&output) {
            // One that has left is dropped the next time round.
            let _ = reader.send(Event::Output(output.clone())).await;
        }
    }

    /// Tells every reader of the end, and lets nobody else attach.
    pub(super) async fn finish(&self, finish: Finish) {
        let readers = {
            let mut state = self.lock();
            state.is_finished = true;
            std::mem::take(&mut state.readers)
        };
        for reader in readers {
            let _ = reader.send(Event::Finish(finish)).await;
        }
    }

    fn readers_or_keep(&self, output: &Output) -> Vec<mpsc::Sender<Event>> {
        let mut state = self.lock();
        state.readers.retain(|reader| !reader.is_closed());
        if state.readers.is_empty() {
            state.backlog_bytes += output.len();
            state.backlog.push_back(output.clone());
            while state.backlog_bytes > BACKLOG_BYTES_MAX {
                let Some(lost) = state.backlog.pop_front() else { break };
                state.backlog_bytes -= lost.len();
            }
        }
        state.readers.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is kept of the output of a process that nobody reads: the newest of it.
pub(super) const BACKLOG_BYTES_MAX: usize = 64 << 10;

/// How many pieces a reader may be behind before the process has to wait.
const READER_QUEUE_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(byte: u8, length: usize) -> Output {
        Output::Stdout(vec![byte; length].into())
    }

    #[tokio::test]
    async fn keeps_the_newest_output_that_nobody_reads() {
        let fanout = Fanout::new();
        for byte in 0..100 {
            fanout.deliver(piece(byte, 10 << 10)).await;
        }
        let (backlog, _receiver) = fanout.attach().unwrap();
        assert_eq!(backlog, (94..100).map(|byte| piece(byte, 10 << 10)).collect::<Vec<_>>());
        let (again, _receiver) = fanout.attach().unwrap();
        assert!(again.is_empty(), "it is handed out once");
    }

    #[tokio::test]
    async fn every_reader_gets_everything_and_the_end() {
        let fanout = Fanout::new();
        let (_, mut first) = fanout.attach().unwrap();
        let (_, second) = fanout.attach().unwrap();
        drop(second);
        fanout.deliver(piece(1, 1)).await;
        let finish = Finish { status: ExitStatus::default(), timed_out: false };
        fanout.finish(finish).await;
        assert_eq!(first.recv().await, Some(Event::Output(piece(1, 1))));
        assert_eq!(first.recv().await, Some(Event::Finish(finish)));
        assert_eq!(first.recv().await, None);
        assert!(fanout.attach().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_holds_the_process_back() {
        let fanout = Fanout::new();
        let (_, mut reader) = fanout.attach().unwrap();
        for _ in 0..READER_QUEUE_MAX {
            fanout.deliver(piece(1, 1)).await;
        }
        let next = fanout.deliver(piece(2, 1));
        tokio::pin!(next);
        assert!(tokio::time::timeout(std::time::Duration::from_secs(60), &mut next).await.is_err());
        reader.recv().await.unwrap();
        next.await;
    }
}
