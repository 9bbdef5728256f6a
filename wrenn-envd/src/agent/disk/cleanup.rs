//! What is left to do on a disk when nobody waits for it any more.
//!
//! To remove a file, and to close one that has no name left or is another program's to serve, takes as long as its file
//! system takes: for ever, when that is frozen or its server hangs. The agent's one thread never does it.

use std::{
    collections::VecDeque,
    fs::File,
    ops::Deref,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

/// Has `work` done by a thread that may wait.
pub(in crate::agent) fn hand_over(work: impl FnOnce() + Send + 'static) {
    CLEANUP.unfinished.send_modify(|unfinished| *unfinished += 1);
    let mut queue = CLEANUP.queue();
    queue.work.push_back(Box::new(work));
    if queue.threads < THREADS_MAX {
        let thread = thread::Builder::new().name("cleanup".to_owned()).stack_size(STACK_BYTES);
        // Where no thread can be made, another one or the next call does it.
        queue.threads += usize::from(thread.spawn(work_off).is_ok());
    }
}

/// Waits until all is done that was handed over, for `wait_max` at most.
pub(in crate::agent) async fn settle(wait_max: Duration) {
    let mut unfinished = CLEANUP.unfinished.subscribe();
    // What takes longer is done later. The sender is never dropped.
    let _ = timeout(wait_max, unfinished.wait_for(|unfinished| *unfinished == 0)).await;
}

/// An open file that is closed by a thread that may wait.
#[derive(Debug)]
pub(in crate::agent) struct Held(Option<File>);

impl Held {
    pub(in crate::agent) fn new(file: File) -> Self {
        Self(Some(file))
    }

    /// The file, for a thread that may wait itself.
    pub(in crate::agent) fn into_file(mut self) -> Option<File> {
        self.0.take()
    }
}

impl Deref for Held {
    type Target = File;

    fn deref(&self) -> &File {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(file) = self.0.take() {
            hand_over(move || drop(file));
        }
    }
}

struct Cleanup {
    queue: Mutex<Queue>,
    unfinished: watch::Sender<usize>,
}

#[derive(Default)]
struct Queue {
    /// One for each file that the agent has open or has made: a guest alone cannot make it longer.
    work: VecDeque<Box<dyn FnOnce() + Send>>,
    threads: usize,
}

impl Cleanup {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing to do. A thread that has nothing to do is one less.
    fn next(&self) -> Option<Box<dyn FnOnce() + Send>> {
        let mut queue = self.queue();
        let next = queue.work.pop_front();
        queue.threads -= usize::from(next.is_none());
        next
    }
}

fn work_off() {
    while let Some(work) = CLEANUP.next() {
        work();
        CLEANUP.unfinished.send_modify(|unfinished| *unfinished -= 1);
    }
}

static CLEANUP: LazyLock<Cleanup> =
    LazyLock::new(|| Cleanup { queue: Mutex::default(), unfinished: watch::Sender::new(0) });

/// Several, so that one file system that stands still holds up no other.
const THREADS_MAX: usize = 4;

const STACK_BYTES: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_waits_holds_up_nothing_else() {
        let (release, released) = mpsc::channel::<()>();
        hand_over(move || {
            let _ = released.recv();
        });
        let (done, is_done) = mpsc::channel();
        for number in 0..100 {
            let done = done.clone();
            hand_over(move || done.send(number).unwrap());
        }
        let mut numbers: Vec<i32> = (0..100).map(|_| is_done.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
        settle(Duration::from_millis(10)).await;
        assert_ne!(*CLEANUP.unfinished.borrow(), 0);
        drop(release);
        settle(Duration::from_secs(10)).await;
    }
}
