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

/// 4 GiB.
pub(crate) const PAGES_MAX: u32 = 1 << 20;

/// A run is ten bytes at most, and has a page.
pub(crate) const BYTES_MAX: u64 = 20 + 10 * PAGES_MAX as u64;

pub(crate) const MAGIC: [u8; 8] = *b"WRENNWS\x01";
const HEADER_LEN: usize = 16;
const CRC_LEN: usize = 4;

/// The bytes of runs that have so many pages.
pub(crate) fn encode(runs: &[PageRange], pages: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + CRC_LEN + 4 * runs.len());
    bytes.extend(MAGIC);
    // No more runs than pages, and no more pages than 2^20.
    bytes.extend(u32::try_from(runs.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(pages.to_le_bytes());
    let mut end = 0;
    for run in runs {
        push(&mut bytes, zigzag(i64::from(run.start.0) - end));
        push(&mut bytes, run.count.into());
        end = i64::from(run.start.0) + i64::from(run.count);
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

/// The runs, and how many pages they have.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Vec<PageRange>, u32), WorkingSetDamage> {
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

fn decode_runs(body: &[u8]) -> Option<(Vec<PageRange>, u32)> {
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
    let whole = rest.is_empty() && total == pages && pages <= PAGES_MAX;
    whole.then_some((runs, pages))
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
