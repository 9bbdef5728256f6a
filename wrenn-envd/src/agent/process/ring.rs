//! The newest of a process's output, in one bounded piece of memory.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

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
/// Many small writes cost what one large write costs: bytes lie beside each other, and a run of one channel's is one entry.
#[derive(Debug, Default)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    runs: VecDeque<Run>,
    first: u64,
}

/// Bytes of one channel, from the end of the run before.
#[derive(Clone, Copy, Debug)]
struct Run {
    channel: Channel,
    end: u64,
}

impl Ring {
    /// The offset of the oldest byte that is held.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The offset of the next byte to come.
    pub(super) fn end(&self) -> u64 {
        self.first + count(self.bytes.len())
    }

    /// The memory that the output takes, in bytes.
    pub(super) fn cost(&self) -> usize {
        self.bytes.len() + self.runs.len() * size_of::<Run>()
    }

    pub(super) fn push(&mut self, channel: Channel, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.bytes.extend(bytes);
        let end = self.end();
        match self.runs.back_mut() {
            Some(run) if run.channel == channel => run.end = end,
            _ => self.runs.push_back(Run { channel, end }),
        }
    }

    /// Lets go of the oldest output until the rest costs no more than `cost_max`, but of nothing from `keep_from` on.
    pub(super) fn trim(&mut self, cost_max: usize, keep_from: u64) {
        while self.cost() > cost_max && self.first < keep_from {
            let Some(run) = self.runs.front() else { return };
            let excess = count(self.cost() - cost_max);
            let to = run.end.min(keep_from).min(self.first + excess);
            let length = usize::try_from(to - self.first).unwrap_or(usize::MAX).min(self.bytes.len());
            let is_whole_run = to == run.end;
            self.bytes.drain(..length);
            self.first = to;
            if is_whole_run {
                self.runs.pop_front();
            }
        }
        // One burst must not hold its memory for the rest of the process's life.
        if self.bytes.capacity() > 2 * self.bytes.len().max(SHRINK_BELOW) {
            self.bytes.shrink_to(self.bytes.len().max(SHRINK_BELOW));
        }
    }

    /// Up to `length_max` bytes of one channel from `offset` on; `None` where nothing is held.
    pub(super) fn read(&self, offset: u64, length_max: usize) -> Option<Chunk> {
        if offset < self.first {
            return None;
        }
        let run = self.runs.get(self.runs.partition_point(|run| run.end <= offset))?;
        let start = usize::try_from(offset - self.first).ok()?;
        let length = usize::try_from(run.end - offset).map_or(length_max, |length| length.min(length_max));
        Some(Chunk { channel: run.channel, offset, bytes: self.copy(start, length) })
    }

    fn copy(&self, start: usize, length: usize) -> Bytes {
        let (front, back) = self.bytes.as_slices();
        let end = start + length;
        let mut copy = BytesMut::with_capacity(length);
        copy.extend_from_slice(&front[start.min(front.len())..end.min(front.len())]);
        copy.extend_from_slice(&back[start.saturating_sub(front.len())..end.saturating_sub(front.len())]);
        copy.freeze()
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Less memory than this is not worth giving back.
const SHRINK_BELOW: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything that was ever written, a byte and its channel at a time.
    fn check(ring: &Ring, written: &[(Channel, u8)]) {
        assert_eq!(ring.end(), count(written.len()));
        let mut offset = ring.first();
        while let Some(chunk) = ring.read(offset, 7) {
            assert!(!chunk.bytes.is_empty() && chunk.bytes.len() <= 7);
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

    proptest! {
        #[test]
        fn holds_the_newest_output_byte_for_byte(
            steps in prop::collection::vec((channel(), prop::collection::vec(any::<u8>(), 0..40), 0_usize..200, any::<bool>()), 0..60)
        ) {
            let (mut ring, mut written) = (Ring::default(), Vec::new());
            for (channel, bytes, cost_max, keep_all) in steps {
                ring.push(channel, &bytes);
                written.extend(bytes.iter().map(|byte| (channel, *byte)));
                let first = ring.first();
                ring.trim(cost_max, if keep_all { first } else { u64::MAX });
                let is_right = if keep_all { ring.first() == first } else { ring.cost() <= cost_max };
                prop_assert!(is_right);
                check(&ring, &written);
            }
        }
    }

    #[test]
    fn what_somebody_has_yet_to_read_is_kept() {
        let mut ring = Ring::default();
        ring.push(Channel::Stdout, &[1; 100]);
        ring.trim(0, 60);
        assert_eq!((ring.first(), ring.end()), (60, 100));
        assert_eq!(ring.read(59, 10), None);
        assert_eq!(ring.read(60, 1000).unwrap().bytes.len(), 40);
        assert_eq!(ring.read(100, 10), None);
    }

    #[test]
    fn small_writes_take_no_more_memory_than_large_ones() {
        let mut ring = Ring::default();
        for _ in 0..100_000 {
            ring.push(Channel::Stdout, b"x");
            ring.trim(1 << 10, u64::MAX);
        }
        assert!(ring.cost() <= 1 << 10 && ring.bytes.capacity() <= 4 << 10 && ring.runs.len() == 1);
        for _ in 0..100_000 {
            ring.push(Channel::Stdout, b"x");
            ring.push(Channel::Stderr, b"y");
            ring.trim(1 << 10, u64::MAX);
        }
        assert!(ring.cost() <= 1 << 10 && ring.runs.capacity() <= 256);
    }
}
