//! The newest of a process's output, in bounded memory.

use std::collections::VecDeque;

use bytes::Bytes;

/// Where a piece of output was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Stdout,
    Stderr,
    Pty,
}

/// A piece of output. `offset` counts the bytes before it, of all channels together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) channel: Channel,
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
}

impl Chunk {
    pub(super) fn end(&self) -> u64 {
        self.offset + count(self.bytes.len())
    }
}

/// Output from [`Ring::first`] to [`Ring::end`].
///
/// Many small writes cost what one large write costs: they are gathered. What comes in a large piece stays where it was read
/// to, and is sent from there.
#[derive(Debug, Default)]
pub(super) struct Ring {
    runs: VecDeque<Run>,
    first: u64,
    end: u64,
}

/// Bytes of one channel that lie beside each other.
#[derive(Debug)]
struct Run {
    channel: Channel,
    /// Of its first byte, which may be one that is held no longer.
    offset: u64,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Piece(Bytes),
    Gathered(Vec<u8>),
}

impl Ring {
    /// The offset of the oldest byte that is held.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The offset of the next byte to come.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The memory that the output takes, in bytes. At either end it may be the rest of a run more.
    pub(super) fn cost(&self) -> usize {
        usize::try_from(self.end - self.first).unwrap_or(usize::MAX) + self.runs.len() * size_of::<Run>()
    }

    pub(super) fn push(&mut self, channel: Channel, mut piece: Vec<u8>) {
        let (length, offset) = (piece.len(), self.end);
        self.end += count(length);
        match self.runs.back_mut() {
            _ if length == 0 => {}
            _ if length >= PIECE_MIN => {
                piece.shrink_to_fit();
                self.runs.push_back(Run { channel, offset, held: Held::Piece(piece.into()) });
            }
            Some(Run { channel: last, held: Held::Gathered(bytes), .. })
                if *last == channel && bytes.len() + length <= GATHERED_MAX =>
            {
                bytes.extend_from_slice(&piece);
            }
            // A copy: the piece may have room for many times as much.
            _ => self.runs.push_back(Run { channel, offset, held: Held::Gathered(piece.as_slice().to_vec()) }),
        }
    }

    /// Lets go of the oldest output until the rest costs no more than `cost_max`, but of nothing from `keep_from` on.
    pub(super) fn trim(&mut self, cost_max: usize, keep_from: u64) {
        while self.cost() > cost_max && self.first < keep_from {
            let Some(run_end) = self.runs.front().map(Run::end) else { return };
            let excess = count(self.cost() - cost_max);
            self.first = run_end.min(keep_from).min(self.first + excess);
            if self.first == run_end {
                self.runs.pop_front();
            }
        }
    }

    /// Up to `length_max` bytes of one channel from `offset` on; `None` where nothing is held. Where the next byte is of the
    /// same channel it is no less than the longest character takes.
    pub(super) fn read(&self, offset: u64, length_max: usize) -> Option<Chunk> {
        if offset < self.first {
            return None;
        }
        let mut rest = self.runs.range(self.runs.partition_point(|run| run.end() <= offset)..);
        let run = rest.next()?;
        let channel = run.channel;
        let mut bytes = run.read(offset, length_max);
        while bytes.len() < CHARACTER_MAX.min(length_max) {
            let Some(run) = rest.next().filter(|run| run.channel == channel) else { break };
            let more = run.read(run.offset, length_max.min(2 * CHARACTER_MAX) - bytes.len());
            bytes = [bytes, more].concat().into();
        }
        Some(Chunk { channel, offset, bytes })
    }

    /// Where the byte of that offset was written to.
    pub(super) fn channel_at(&self, offset: u64) -> Option<Channel> {
        self.runs.get(self.runs.partition_point(|run| run.end() <= offset)).map(|run| run.channel)
    }
}

impl Run {
    fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Piece(bytes) => bytes,
            Held::Gathered(bytes) => bytes,
        }
    }

    fn end(&self) -> u64 {
        self.offset + count(self.bytes().len())
    }

    fn read(&self, offset: u64, length_max: usize) -> Bytes {
        let length = self.bytes().len();
        let start = usize::try_from(offset - self.offset).map_or(length, |start| start.min(length));
        let end = length.min(start.saturating_add(length_max));
        match &self.held {
            Held::Piece(bytes) => bytes.slice(start..end),
            Held::Gathered(bytes) => Bytes::copy_from_slice(&bytes[start..end]),
        }
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// The least that is not copied beside what came before.
const PIECE_MIN: usize = 16 << 10;
const GATHERED_MAX: usize = 64 << 10;
/// Of UTF-8, in bytes.
const CHARACTER_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything that was ever written, a byte and its channel at a time.
    fn check(ring: &Ring, written: &[(Channel, u8)], length_max: usize) {
        assert_eq!(ring.end(), count(written.len()));
        let mut offset = ring.first();
        while let Some(chunk) = ring.read(offset, length_max) {
            assert!(!chunk.bytes.is_empty() && chunk.bytes.len() <= length_max);
            for byte in &chunk.bytes {
                assert_eq!(written[usize::try_from(offset).unwrap()], (chunk.channel, *byte));
                offset += 1;
            }
            assert_eq!(chunk.end(), offset);
        }
        assert_eq!(offset, ring.end());
    }

    fn channel() -> impl Strategy<Value = Channel> {
        prop_oneof![Just(Channel::Stdout), Just(Channel::Stderr), Just(Channel::Pty)]
    }

    /// Mostly few, which are gathered, and some that stay a piece.
    fn length() -> impl Strategy<Value = usize> {
        prop_oneof![4 => 0_usize..40, 1 => PIECE_MIN - 2..PIECE_MIN + 40]
    }

    proptest! {
        #[test]
        fn holds_the_newest_output_byte_for_byte(
            steps in prop::collection::vec((channel(), any::<u8>(), length(), 0_usize..100_000, any::<bool>()), 0..40),
            length_max in prop_oneof![Just(100), Just(1 << 10), Just(1 << 20)],
        ) {
            let (mut ring, mut written) = (Ring::default(), Vec::new());
            for (channel, first, length, cost_max, keep_all) in steps {
                let bytes: Vec<u8> = (0..length).map(|at| first.wrapping_add(at.to_le_bytes()[0])).collect();
                ring.push(channel, bytes.clone());
                written.extend(bytes.iter().map(|byte| (channel, *byte)));
                let first = ring.first();
                ring.trim(cost_max, if keep_all { first } else { u64::MAX });
                let is_right = if keep_all { ring.first() == first } else { ring.cost() <= cost_max };
                prop_assert!(is_right);
                check(&ring, &written, length_max);
            }
        }
    }

    #[test]
    fn what_somebody_has_yet_to_read_is_kept() {
        let mut ring = Ring::default();
        ring.push(Channel::Stdout, vec![1; 100]);
        ring.trim(0, 60);
        assert_eq!((ring.first(), ring.end()), (60, 100));
        assert_eq!(ring.read(59, 10), None);
        assert_eq!(ring.read(60, 1000).unwrap().bytes.len(), 40);
        assert_eq!(ring.read(100, 10), None);
    }

    #[test]
    fn a_character_that_lies_in_two_runs_can_be_read_whole() {
        let mut ring = Ring::default();
        let mut piece = vec![b'x'; PIECE_MIN];
        piece.extend(&"€".as_bytes()[..1]);
        ring.push(Channel::Stdout, piece);
        ring.push(Channel::Stdout, "€".as_bytes()[1..2].into());
        ring.push(Channel::Stdout, [&"€".as_bytes()[2..], &vec![b'y'; PIECE_MIN]].concat());
        ring.push(Channel::Stderr, b"z".into());
        let first = ring.read(0, 1 << 20).unwrap();
        assert_eq!((first.bytes.len(), ring.channel_at(first.end())), (PIECE_MIN + 1, Some(Channel::Stdout)));
        let joined = ring.read(count(PIECE_MIN), 1 << 20).unwrap();
        assert_eq!(joined.bytes, "€yyyyy");
        let last = ring.read(joined.end(), 1 << 20).unwrap();
        assert_eq!((last.bytes.len(), ring.channel_at(last.end())), (PIECE_MIN - 5, Some(Channel::Stderr)));
        assert_eq!((ring.read(last.end(), 9).unwrap().bytes, ring.channel_at(ring.end())), ("z".into(), None));
    }

    #[test]
    fn small_writes_take_no_more_memory_than_large_ones() {
        let mut ring = Ring::default();
        for _ in 0..100_000 {
            ring.push(Channel::Stdout, b"x".into());
            ring.trim(1 << 10, u64::MAX);
        }
        assert!(ring.cost() <= 1 << 10 && ring.runs.len() <= 2);
        assert!(ring.runs.iter().all(|run| run.bytes().len() <= GATHERED_MAX));
        for _ in 0..100_000 {
            ring.push(Channel::Stdout, b"x".into());
            ring.push(Channel::Stderr, b"y".into());
            ring.trim(1 << 10, u64::MAX);
        }
        assert!(ring.cost() <= 1 << 10 && ring.runs.capacity() <= 256);
    }
}
