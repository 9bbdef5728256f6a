//! A process's output for whoever reads it, now or after a while.
//!
//! ```text
//!  Process::run -> has_room? -> push -> Ring <- Reader::next <- a client's stream
//!                     ^                            |
//!                     +------- room <--------------+
//! ```
//!
//! Readers take at their own pace, and the slowest that is attached sets the process's: it waits when that one is
//! [`WINDOW_BYTES`] behind. While nobody is attached the process runs on, and the newest output is kept; but for a moment
//! after a reader has gone the process does not run away from it, since it may come back over another connection.

use std::{
    collections::BTreeMap,
    process::ExitStatus,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::{
    ring::{Channel, Chunk, Ring},
    utf8,
};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finish {
    pub(super) status: ExitStatus,
    /// Whether it was killed because its time was up.
    pub(super) timed_out: bool,
}

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Output(Chunk),
    /// Output that was asked for and is no longer held.
    Lost {
        offset: u64,
        bytes: u64,
    },
    /// The last one. `offset` is how much output there was in all.
    Finish {
        finish: Finish,
        offset: u64,
    },
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// With what no reader has had, or with what comes when others read.
    Unread,
    /// With the byte of that offset.
    Offset(u64),
}

/// An offset that the output has not come to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the process has written {end} bytes, which is less than the offset {asked}")]
pub(super) struct OutOfRange {
    asked: u64,
    end: u64,
}

/// The memory that all journals together may take; shared by them.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { used: AtomicUsize::new(0), bytes_max }
    }

    pub(super) fn is_spent(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.bytes_max
    }

    fn replace(&self, old: usize, new: usize) {
        self.used.fetch_add(new, Ordering::Relaxed);
        self.used.fetch_sub(old, Ordering::Relaxed);
    }
}

/// One process's output and its end.
#[derive(Debug)]
pub(super) struct Journal {
    state: Mutex<State>,
    budget: Arc<Budget>,
    /// Something to read.
    news: Notify,
    /// Something was read, or a reader has left.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    ring: Ring,
    /// How far each attached reader has come.
    readers: BTreeMap<u64, u64>,
    last_reader: u64,
    /// How far the last reader came that has gone, and until when it is expected back.
    left: Option<(u64, Instant)>,
    /// How far any reader has ever come.
    read_to: u64,
    finish: Option<Finish>,
}

/// Somebody who reads a journal. Dropping it detaches.
#[derive(Debug)]
pub(super) struct Reader {
    journal: Arc<Journal>,
    id: u64,
    position: u64,
    is_done: bool,
}

impl Journal {
    pub(super) fn new(budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), budget, news: Notify::new(), room: Notify::new() })
    }

    /// Attaches a reader.
    pub(super) fn attach(self: &Arc<Self>, from: From) -> Result<Reader, OutOfRange> {
        let mut state = self.lock();
        let (first, end) = (state.ring.first(), state.ring.end());
        let position = match from {
            From::Unread if state.readers.is_empty() => state.read_to.max(first),
            From::Unread => end,
            From::Offset(asked) if asked > end => return Err(OutOfRange { asked, end }),
            From::Offset(asked) => asked,
        };
        // What is lost is nothing that the process could wait for.
        let id = state.add_reader(position.max(first));
        Ok(Reader { journal: self.clone(), id, position, is_done: false })
    }

    /// Attaches a reader of all that there is.
    pub(super) fn attach_from_the_start(self: &Arc<Self>) -> Reader {
        let mut state = self.lock();
        let first = state.ring.first();
        let id = state.add_reader(first);
        Reader { journal: self.clone(), id, position: 0, is_done: false }
    }

    /// Takes what the process has written. Does not wait: see [`Journal::has_room`].
    pub(super) fn push(&self, channel: Channel, bytes: impl Into<Vec<u8>>) {
        let mut state = self.lock();
        let cost = state.ring.cost();
        state.ring.push(channel, bytes.into());
        let cost_max = if self.budget.is_spent() { KEPT_BYTES_MIN } else { KEPT_BYTES_MAX };
        let keep_from = state.slowest().unwrap_or(u64::MAX);
        state.ring.trim(cost_max, keep_from);
        self.budget.replace(cost, state.ring.cost());
        drop(state);
        self.news.notify_waiters();
    }

    /// Whether every reader is near enough for more.
    pub(super) fn has_room(&self) -> bool {
        let (window, run_ahead) = match self.budget.is_spent() {
            true => (KEPT_BYTES_MIN, KEPT_BYTES_MIN / 2),
            false => (WINDOW_BYTES, KEPT_BYTES_MAX - ON_THE_WAY_BYTES),
        };
        let state = self.lock();
        let behind = |position| state.ring.end() - position;
        match (state.slowest(), state.left) {
            (Some(slowest), _) => behind(slowest) < window as u64,
            // What was on its way to the reader when it went has to be kept, too.
            (None, Some((position, until))) if Instant::now() < until => behind(position) < run_ahead as u64,
            (None, _) => true,
        }
    }

    /// Waits for a change after which there may be room.
    pub(super) async fn room(&self) {
        let left = self.lock().left;
        tokio::select! {
            () = self.room.notified() => {}
            () = sleep_until(left.map_or_else(Instant::now, |(_, until)| until)), if left.is_some() => {}
        }
    }

    /// Says how the process ended; nothing is pushed afterwards.
    pub(super) fn finish(&self, finish: Finish) {
        self.lock().finish = Some(finish);
        self.news.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.budget.replace(self.lock().ring.cost(), 0);
    }
}

impl State {
    fn add_reader(&mut self, position: u64) -> u64 {
        self.left = None;
        self.last_reader += 1;
        self.readers.insert(self.last_reader, position);
        self.last_reader
    }

    fn slowest(&self) -> Option<u64> {
        self.readers.values().copied().min()
    }
}

impl Reader {
    /// How much output was before what it has not read yet.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; `None` after the end.
    ///
    /// A character is not cut in two, unless its rest takes more than [`UTF8_WAIT`] to come.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Option<Entry> {
        if self.is_done {
            return None;
        }
        let journal = self.journal.clone();
        let mut waited = false;
        loop {
            let mut news = std::pin::pin!(journal.news.notified());
            // From here on no news is missed.
            news.as_mut().enable();
            let half_a_character = match self.take(waited) {
                Taken::Entry(entry) => return Some(entry),
                Taken::HalfACharacter => true,
                Taken::Nothing => false,
            };
            tokio::select! {
                () = news => {}
                () = sleep(UTF8_WAIT), if half_a_character => waited = true,
            }
        }
    }

    fn take(&mut self, also_half_a_character: bool) -> Taken {
        let mut state = self.journal.lock();
        let first = state.ring.first();
        if self.position < first {
            let offset = std::mem::replace(&mut self.position, first);
            return Taken::Entry(Entry::Lost { offset, bytes: first - offset });
        }
        let Some(mut chunk) = state.ring.read(self.position, CHUNK_BYTES_MAX) else {
            let Some(finish) = state.finish else { return Taken::Nothing };
            self.is_done = true;
            return Taken::Entry(Entry::Finish { finish, offset: self.position });
        };
        // Where another channel's output follows nothing can be missing, only be malformed; and after the end nothing comes.
        let goes_on = match state.ring.channel_at(chunk.end()) {
            Some(channel) => channel == chunk.channel,
            None => state.finish.is_none() && !also_half_a_character,
        };
        if goes_on {
            chunk.bytes.truncate(utf8::whole_characters(&chunk.bytes));
        }
        if chunk.bytes.is_empty() {
            return Taken::HalfACharacter;
        }
        self.position = chunk.end();
        state.readers.insert(self.id, self.position);
        state.read_to = state.read_to.max(self.position);
        drop(state);
        self.journal.room.notify_one();
        Taken::Entry(Entry::Output(chunk))
    }
}

enum Taken {
    Entry(Entry),
    HalfACharacter,
    Nothing,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.journal.lock();
        state.readers.remove(&self.id);
        if state.readers.is_empty() && !self.is_done {
            state.left = Some((self.position, Instant::now() + EXPECTED_BACK));
        }
        drop(state);
        self.journal.room.notify_one();
    }
}

/// What is kept of a process's output, for readers who come back.
pub(super) const KEPT_BYTES_MAX: usize = 1 << 20;

/// The same, and how far a reader may be behind, when all processes together have kept too much.
const KEPT_BYTES_MIN: usize = 64 << 10;

/// How much of what is kept may be on its way to a reader that stands still: here, in both kernels, and at the host.
const ON_THE_WAY_BYTES: usize = 640 << 10;

/// Far longer than a client takes to notice that its connection is gone, and to come back.
const EXPECTED_BACK: Duration = Duration::from_secs(3);

/// How far the slowest reader may be behind before the process has to wait.
const WINDOW_BYTES: usize = 256 << 10;

/// The most that one entry holds.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// How long the rest of a character may take.
const UTF8_WAIT: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn journal() -> Arc<Journal> {
        Journal::new(Arc::new(Budget::new(1 << 30)))
    }

    fn finish() -> Finish {
        Finish { status: ExitStatus::default(), timed_out: false }
    }

    async fn text(reader: &mut Reader) -> String {
        match reader.next().await {
            Some(Entry::Output(chunk)) => String::from_utf8(chunk.bytes.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_reader_who_comes_back_misses_nothing() {
        let journal = journal();
        let mut first = journal.attach(From::Offset(0)).unwrap();
        journal.push(Channel::Stdout, b"one ");
        assert_eq!(text(&mut first).await, "one ");
        journal.push(Channel::Stdout, b"two ");
        drop(first);
        journal.push(Channel::Stdout, b"three");
        journal.finish(finish());
        let mut second = journal.attach(From::Offset(4)).unwrap();
        assert_eq!(text(&mut second).await, "two three");
        assert_eq!(second.next().await, Some(Entry::Finish { finish: finish(), offset: 13 }));
        assert_eq!(second.next().await, None);
        assert_eq!(text(&mut journal.attach(From::Offset(0)).unwrap()).await, "one two three");
        assert_eq!(journal.attach(From::Offset(14)).unwrap_err(), OutOfRange { asked: 14, end: 13 });
    }

    #[tokio::test]
    async fn one_who_names_no_offset_gets_what_nobody_has_had() {
        let journal = journal();
        journal.push(Channel::Stderr, b"a");
        let mut first = journal.attach(From::Unread).unwrap();
        assert_eq!(text(&mut first).await, "a");
        let mut beside = journal.attach(From::Unread).unwrap();
        journal.push(Channel::Stderr, b"b");
        assert_eq!((text(&mut first).await, text(&mut beside).await), ("b".to_owned(), "b".to_owned()));
        drop((first, beside));
        journal.push(Channel::Stderr, b"c");
        assert_eq!(text(&mut journal.attach(From::Unread).unwrap()).await, "c");
    }

    #[tokio::test]
    async fn what_is_no_longer_held_is_counted() {
        let journal = journal();
        for _ in 0..100 {
            journal.push(Channel::Stdout, [b'x'; 20 << 10]);
        }
        let (first, end) = (journal.lock().ring.first(), 100 * (20 << 10));
        assert!(end - first <= KEPT_BYTES_MAX as u64 && end - first > KEPT_BYTES_MAX as u64 - (8 << 10));
        let mut reader = journal.attach(From::Offset(10)).unwrap();
        assert_eq!(reader.next().await, Some(Entry::Lost { offset: 10, bytes: first - 10 }));
        assert!(matches!(reader.next().await, Some(Entry::Output(chunk)) if chunk.offset == first));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_holds_the_process_back() {
        let journal = journal();
        let mut reader = journal.attach(From::Unread).unwrap();
        while journal.has_room() {
            journal.push(Channel::Stdout, [b'x'; 10 << 10]);
        }
        assert!(timeout(Duration::from_secs(60), journal.room()).await.is_err());
        reader.next().await.unwrap();
        journal.room().await;
        assert!(journal.has_room());
        while journal.has_room() {
            journal.push(Channel::Stdout, [b'x'; 10 << 10]);
        }
        drop(reader);
        journal.room().await;
        assert!(journal.has_room());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_does_not_run_away_from_a_reader_that_comes_back() {
        let journal = journal();
        let mut reader = journal.attach(From::Unread).unwrap();
        journal.push(Channel::Stdout, b"read");
        reader.next().await.unwrap();
        drop(reader);
        while journal.has_room() {
            journal.push(Channel::Stdout, [b'x'; 10 << 10]);
        }
        // All of it is there for who comes back soon; for nobody else is it waited.
        let back = journal.attach(From::Offset(4)).unwrap();
        assert!(!journal.has_room());
        drop(back);
        journal.room().await;
        tokio::time::advance(EXPECTED_BACK).await;
        journal.room().await;
        assert!(journal.has_room());
    }

    #[tokio::test]
    async fn all_processes_together_keep_a_bounded_amount() {
        let budget = Arc::new(Budget::new(2 << 20));
        let journals: Vec<_> = (0..20).map(|_| Journal::new(budget.clone())).collect();
        for journal in journals.iter().cycle().take(20 * 100) {
            journal.push(Channel::Stdout, [b'x'; 16 << 10]);
        }
        let used = || budget.used.load(Ordering::Relaxed);
        assert!(used() <= (2 << 20) + 20 * KEPT_BYTES_MIN, "{}", used());
        drop(journals);
        assert_eq!(used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_character_is_not_cut_in_two() {
        let journal = journal();
        let mut reader = journal.attach(From::Unread).unwrap();
        journal.push(Channel::Stdout, b"a\xe2\x82");
        assert_eq!(text(&mut reader).await, "a");
        assert!(timeout(UTF8_WAIT / 2, reader.next()).await.is_err());
        journal.push(Channel::Stdout, b"\xac!");
        assert_eq!(text(&mut reader).await, "\u{20ac}!");
        journal.push(Channel::Stdout, b"\xe2");
        assert!(matches!(reader.next().await, Some(Entry::Output(chunk)) if chunk.bytes == b"\xe2"[..]));
    }
}
