//! A few threads for calls that may stand in the kernel for long.
//!
//! What waits for one disk must not wait in a queue behind what waits for another; so who must not be held up has threads
//! of its own. They are made when they are needed, and all but one go again.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

/// At most so many threads, and what waits for one of them.
#[derive(Debug)]
pub(super) struct Threads {
    name: &'static str,
    threads_max: usize,
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Work>,
    threads: usize,
    idle: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("queue", &self.queue.len())
            .field("threads", &self.threads)
            .field("idle", &self.idle)
            .finish()
    }
}

impl Threads {
    pub(super) fn new(name: &'static str, threads_max: usize) -> Arc<Self> {
        Arc::new(Self { name, threads_max, state: Mutex::default(), news: Condvar::new() })
    }

    /// Does `work` on one of the threads, after what was asked for before; the receiver gets what comes of it.
    ///
    /// # Errors
    ///
    /// Where there is no thread yet and none can be made; `work` is not done then.
    ///
    /// # Cancel-Safety
    ///
    /// Dropping the receiver leaves `work` to be done all the same.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<oneshot::Receiver<T>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        if state.queue.len() >= state.idle && state.threads < self.threads_max {
            let made = self.begin_thread();
            match made {
                Ok(()) => state.threads += 1,
                Err(error) if state.threads == 0 => return Err(error),
                // It waits for one of those that there are.
                Err(_) => {}
            }
        }
        state.queue.push_back(Box::new(move || drop(sender.send(work()))));
        self.news.notify_one();
        Ok(receiver)
    }

    fn begin_thread(self: &Arc<Self>) -> io::Result<()> {
        let this = Arc::clone(self);
        thread::Builder::new().name(self.name.to_owned()).stack_size(STACK_BYTES).spawn(move || this.serve()).map(drop)
    }

    fn serve(&self) {
        while let Some(work) = self.next() {
            work();
        }
    }

    /// What comes next; `None` for a thread that is not needed any more.
    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.queue.pop_front() {
                return Some(work);
            }
            state.idle += 1;
            let (locked, waited) = self.news.wait_timeout(state, IDLE_MAX).unwrap_or_else(PoisonError::into_inner);
            state = locked;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() && state.threads > 1 {
                state.threads -= 1;
                return None;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a thread waits for more to do, unless it is the last one.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Only what is used of it takes memory.
const STACK_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_stands_still_holds_up_others_only_when_no_thread_is_left() {
        let threads = Threads::new("test", 2);
        let (first_go, first_waits) = mpsc::channel::<()>();
        let (second_go, second_waits) = mpsc::channel::<()>();
        let first = threads.run(move || first_waits.recv().is_ok()).unwrap();
        assert_eq!(threads.run(|| 7).unwrap().await, Ok(7));
        let second = threads.run(move || second_waits.recv().is_ok()).unwrap();
        let mut third = threads.run(|| 8).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(third.try_recv().is_err(), "both threads stand still");
        first_go.send(()).unwrap();
        assert_eq!((first.await, third.await), (Ok(true), Ok(8)));
        second_go.send(()).unwrap();
        assert_eq!(second.await, Ok(true));
        assert!(threads.lock().threads <= 2);
    }
}
