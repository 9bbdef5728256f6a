//! What the repository's fuzzer calls: each function takes any bytes, and panics where a promise is broken.
//!
//! Most bytes that a fuzzer makes fail a checksum. So each file is tried as it is, and once more with its length and its
//! checksums put right, which leads to what is behind them.

use crate::{
    format::header::{FixedPart, Header},
    format::manifest::Manifest,
    hand_over::HandOver,
    page::PageIndex,
    region::Region,
    working_set::WorkingSet,
};

/// A space's header: any bytes are a header that encodes to the same bytes, or they are refused.
///
/// # Panics
/// A promise is broken.
pub fn header(bytes: &[u8]) {
    check_header(bytes);
    let mut sealed = bytes.to_vec();
    seal_header(&mut sealed);
    check_header(&sealed);
}

/// A manifest: any bytes are a manifest that encodes to the same bytes, or they are refused.
///
/// # Panics
/// A promise is broken.
pub fn manifest(bytes: &[u8]) {
    check_manifest(bytes);
    let mut sealed = bytes.to_vec();
    seal_manifest(&mut sealed);
    check_manifest(&sealed);
}

/// A working set: any bytes are a set that encodes to the same bytes, or they are refused.
///
/// # Panics
/// A promise is broken.
pub fn working_set(bytes: &[u8]) {
    check_working_set(bytes);
    let mut sealed = bytes.to_vec();
    let covered = sealed.len().saturating_sub(4);
    put_crc(&mut sealed, 0..covered, covered);
    check_working_set(&sealed);
}

/// The message by which a VMM hands its memory over: any bytes are whole granules of memory, or they are refused.
///
/// # Panics
/// A promise is broken.
pub fn hand_over(bytes: &[u8]) {
    let Ok(regions) = HandOver::parse_regions(bytes) else { return };
    let is_sound = |region: &Region| {
        region.len_bytes > 0
            && region.len_bytes.is_multiple_of(region.granule.bytes())
            && region.host_addr.checked_add(region.len_bytes).is_some()
            && region.offset_bytes.checked_add(region.len_bytes).is_some()
    };
    assert!(!regions.is_empty() && regions.iter().all(is_sound), "{regions:?}");
}

fn check_header(bytes: &[u8]) {
    if let Ok(fixed) = FixedPart::decode(bytes, bytes.len() as u64) {
        assert!(fixed.data_tables_range().end <= bytes.len() as u64, "a table lies outside of the file");
    }
    let Ok(header) = Header::decode(bytes) else { return };
    assert_eq!(header.encode().as_deref(), Ok(bytes));
    let pages = header.index.page_count();
    for page in [0, pages / 2, pages.saturating_sub(1), pages, u32::MAX] {
        assert_eq!(header.index.lookup(PageIndex(page)).is_some(), page < pages, "page {page} of {pages}");
    }
}

fn check_manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(manifest.encode().as_deref(), Ok(bytes));
    }
}

fn check_working_set(bytes: &[u8]) {
    let Ok(set) = WorkingSet::decode(bytes) else { return };
    assert_eq!(set.encode(), bytes);
    let pages: u64 = set.runs().iter().map(|run| u64::from(run.count)).sum();
    assert_eq!(pages, u64::from(set.page_count()));
}

/// Puts right the length and the checksums of a header, as far as it reaches. `docs/snapshot-format.md` has the offsets.
fn seal_header(bytes: &mut [u8]) {
    let is_compressed = number(bytes, 8) == Some(2);
    let fixed_len = if is_compressed { 88 } else { 80 };
    if bytes.len() < fixed_len {
        return;
    }
    let len = bytes.len() as u64;
    bytes[32..40].copy_from_slice(&len.to_le_bytes());
    let count = |at| number(bytes, at).unwrap_or(0) as usize;
    let chunks = count(56).div_ceil(count(76).max(1));
    let tables = [(count(48), 16, 60), (count(52), 16, 64), (count(56), 4, 68), (chunks, 8, 80)];
    let mut start = fixed_len;
    for (records, record_len, crc_at) in tables.into_iter().take(if is_compressed { 4 } else { 3 }) {
        let end = start.saturating_add(records.saturating_mul(record_len)).min(bytes.len());
        put_crc(bytes, start..end, crc_at);
        start = end;
    }
    put_crc(bytes, 0..fixed_len - 4, fixed_len - 4);
}

/// Puts right the length and the checksums of a manifest.
fn seal_manifest(bytes: &mut [u8]) {
    const FIXED_LEN: usize = 32;
    let Some(record_len) = bytes.len().checked_sub(FIXED_LEN) else { return };
    bytes[16..24].copy_from_slice(&(record_len as u64).to_le_bytes());
    put_crc(bytes, FIXED_LEN..FIXED_LEN + record_len, 24);
    put_crc(bytes, 0..28, 28);
}

/// Writes the checksum of a part of `bytes`, if there is room for it.
fn put_crc(bytes: &mut [u8], covered: std::ops::Range<usize>, at: usize) {
    let crc = crc32c::crc32c(&bytes[covered]);
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else what is behind the checksums is never reached.
    #[test]
    fn putting_a_file_right_changes_nothing_in_a_good_one() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
        for version in ["v1", "v2-lz4", "v2-zstd"] {
            for (file, seal) in [("memory.header", seal_header as fn(&mut [u8])), ("manifest", seal_manifest)] {
                let path = format!("{golden}/{version}/b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0/{file}");
                let good = std::fs::read(&path).expect("a golden file");
                let mut sealed = good.clone();
                seal(&mut sealed);
                assert_eq!(sealed, good, "{path}");
                let mut bent = good.clone();
                let last = bent.len() - 1;
                bent[last] ^= 1;
                seal(&mut bent);
                assert!(bent[..last] != good[..last], "{path}: a checksum covers the last byte");
            }
        }
    }
}
