//! The bytes of a working set.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `WRENNWS` and the version, 1 |
//! | 8 | 4 | how many runs |
//! | 12 | 4 | how many pages they have in all, at most 2^20 |
//! | 16 | | for each run: how far it starts from the end of the one before, or from 0, and how many pages it has |
//! | end - 4 | 4 | CRC-32C of all bytes before |
//!
//! Fixed numbers are little-endian. Those of a run are LEB128: seven bits a byte, the lowest first, the eighth set in
//! all but the last; a distance is zigzag, so that it can be negative (0, -1, 1, -2 are 0, 1, 2, 3). A number has one
//! encoding, the shortest.

use super::WorkingSet;
use crate::page::PageRange;

/// Why bytes are not a working set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkingSetDamage {
    /// Too short, too long, or of another kind or version.
    #[error("not a working set of version 1")]
    Kind,
    /// Something was changed or lost.
    #[error("the checksum of the working set does not match")]
    Checksum,
    /// The checksum matches, and a number is out of range.
    #[error("a working set with a number out of range")]
    Contents,
}

/// A run is ten bytes at most, and has a page.
pub(super) const BYTES_MAX: u64 = 20 + 10 * WorkingSet::PAGES_MAX as u64;

const MAGIC: [u8; 8] = *b"WRENNWS\x01";
const HEADER_LEN: usize = 16;
const CRC_LEN: usize = 4;

pub(super) fn encode(set: &WorkingSet) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + CRC_LEN + 4 * set.runs.len());
    bytes.extend(MAGIC);
    // No more runs than pages, and no more pages than 2^20.
    bytes.extend(u32::try_from(set.runs.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(set.pages.to_le_bytes());
    let mut end = 0;
    for run in &set.runs {
        push(&mut bytes, zigzag(i64::from(run.start.0) - end));
        push(&mut bytes, run.count.into());
        end = i64::from(run.start.0) + i64::from(run.count);
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Result<WorkingSet, WorkingSetDamage> {
    let body_len = bytes.len().checked_sub(CRC_LEN).filter(|len| *len >= HEADER_LEN).ok_or(WorkingSetDamage::Kind)?;
    if bytes.len() as u64 > BYTES_MAX || !bytes.starts_with(&MAGIC) {
        return Err(WorkingSetDamage::Kind);
    }
    let (body, crc) = bytes.split_at(body_len);
    if crc32c::crc32c(body).to_le_bytes() != crc {
        return Err(WorkingSetDamage::Checksum);
    }
    decode_runs(body).ok_or(WorkingSetDamage::Contents)
}

fn decode_runs(body: &[u8]) -> Option<WorkingSet> {
    let (count, pages) = (fixed(body, 8)?, fixed(body, 12)?);
    let mut rest = &body[HEADER_LEN..];
    // Nothing is reserved for a count that the bytes do not bear out: a run takes two of them at least.
    let mut runs = Vec::with_capacity(rest.len().min(count as usize * 2) / 2);
    let (mut end, mut total) = (0i64, 0u32);
    for _ in 0..count {
        let start = u32::try_from(end.checked_add(unzigzag(pull(&mut rest)?))?).ok()?;
        let pages = u32::try_from(pull(&mut rest)?).ok().filter(|pages| *pages > 0)?;
        total = total.checked_add(pages)?;
        start.checked_add(pages)?;
        end = i64::from(start) + i64::from(pages);
        runs.push(PageRange::new(start, pages));
    }
    let whole = rest.is_empty() && total == pages && pages <= WorkingSet::PAGES_MAX;
    whole.then_some(WorkingSet { runs, pages })
}

fn fixed(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn push(bytes: &mut Vec<u8>, mut number: u64) {
    while let low @ 0x80.. = number {
        bytes.push(low.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// Takes a number of at most five bytes, 35 bits, off the front.
fn pull(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for at in 0..5 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let shortest = at == 0 || byte != 0;
            return shortest.then_some(number);
        }
    }
    None
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(runs: &[(u32, u32)]) -> WorkingSet {
        let mut set = WorkingSet::new();
        runs.iter().for_each(|(start, count)| set.record(PageRange::new(*start, *count)));
        set
    }

    #[test]
    fn the_bytes_of_version_1_do_not_change() {
        let expected = b"WRENNWS\x01\x02\0\0\0\x11\0\0\0\xc8\x01\x10\xaf\x01\x01\xe2\x01\x0b\xc4";
        let bytes = set(&[(100, 16), (28, 1)]).encode();
        assert_eq!(bytes, expected, "{bytes:x?}");
        assert_eq!(WorkingSet::decode(&bytes).expect("whole"), set(&[(100, 16), (28, 1)]));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes = set(&[(100, 16), (3, 1), (1 << 30, 500)]).encode();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(WorkingSet::decode(&bytes).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(WorkingSet::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn what_was_recorded_is_read_back(runs in prop::collection::vec((any::<u32>(), 1u32..2000), 0..50)) {
            let set = set(&runs);
            prop_assert_eq!(WorkingSet::decode(&set.encode()), Ok(set));
        }

        /// With a checksum that matches, so that the numbers are looked at.
        #[test]
        fn no_bytes_panic_or_give_a_set_that_is_out_of_bounds(
            count in 0u32..8, pages in 0u32..64, body in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(count.to_le_bytes());
            bytes.extend(pages.to_le_bytes());
            bytes.extend(body);
            bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
            if let Ok(set) = WorkingSet::decode(&bytes) {
                prop_assert_eq!(set.runs.iter().map(|run| run.count).sum::<u32>(), set.pages);
                prop_assert!(set.runs.iter().all(|run| run.end() <= u64::from(u32::MAX)));
            }
        }
    }
}
