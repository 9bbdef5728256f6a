//! Valid files, bent: whatever comes of it is a value that encodes to the very same bytes, or a named damage.
//!
//! The checksums are put right afterwards, most of the time, so that what is behind them is reached.

use proptest::{prelude::*, sample::Index};

use crate::{
    format::{
        fields::*,
        header::*,
        manifest::*,
        tests::{headers, manifests, reseal},
    },
    page::PageIndex,
    seed::cases,
};

/// One thing that is done to a file. Where it is past the end, it is counted from the start again.
#[derive(Clone, Debug)]
enum Bend {
    Byte(Index, u8),
    Number(Index, u32),
    Field(Index, u32),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Repeat(Index, Index),
}

fn bend() -> impl Strategy<Value = Bend> {
    let number = || {
        let edges = [0, 1, 2, 9, 10, 11, 76, 4096, PAGES_MAX, PAGES_MAX + 1, 1 << 31, u32::MAX - 1, u32::MAX];
        prop_oneof![3 => proptest::sample::select(edges.to_vec()), 1 => any::<u32>(), 2 => 0u32..16]
    };
    prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Bend::Byte(at, value)),
        3 => (any::<Index>(), number()).prop_map(|(at, value)| Bend::Number(at, value)),
        6 => (any::<Index>(), number()).prop_map(|(at, value)| Bend::Field(at, value)),
        1 => any::<Index>().prop_map(Bend::Cut),
        1 => (any::<Index>(), proptest::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, bytes)| Bend::Insert(at, bytes)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Bend::Repeat(from, to)),
    ]
}

impl Bend {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len().max(1);
        match self {
            Self::Byte(at, value) => bytes.iter_mut().skip(at.index(len)).take(1).for_each(|byte| *byte = *value),
            Self::Number(at, value) => overwrite(bytes, at.index(len), *value),
            // Most fields start at a multiple of four.
            Self::Field(at, value) => overwrite(bytes, at.index(len) / 4 * 4, *value),
            Self::Cut(at) => bytes.truncate(at.index(len)),
            Self::Insert(at, more) => {
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Repeat(from, to) => {
                let (from, to) = (from.index(bytes.len() + 1), to.index(bytes.len() + 1));
                let piece = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.extend_from_slice(&piece);
            }
        }
    }
}

fn overwrite(bytes: &mut [u8], at: usize, value: u32) {
    bytes.iter_mut().skip(at).zip(value.to_le_bytes()).for_each(|(byte, new)| *byte = new);
}

/// Puts right what a header says of its own length and checksums, as far as it reaches.
fn reseal_header(bytes: &mut [u8]) {
    let is_compressed = bytes.get(8) == Some(&2);
    let fixed = if is_compressed { HEADER_FIXED_COMPRESSED } else { HEADER_FIXED };
    if bytes.len() < fixed {
        return;
    }
    let len = bytes.len() as u64;
    bytes[32..40].copy_from_slice(&len.to_le_bytes());
    let number = |bytes: &[u8], at: usize| Fields(&bytes[at..]).u32() as usize;
    let chunks = number(bytes, 56).div_ceil(number(bytes, 76).max(1));
    let tables =
        [(48, ID_LEN, 60), (52, 16, 64), (56, CRC_LEN, 68)].map(|(count, len, crc)| (number(bytes, count), len, crc));
    let mut at = fixed;
    for (count, record_len, crc_at) in tables.into_iter().chain(is_compressed.then_some((chunks, 8, 80))) {
        let end = (at + count.saturating_mul(record_len)).min(bytes.len());
        let crc = crc32c::crc32c(&bytes[at..end]);
        bytes[crc_at..][..4].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
    reseal(bytes, fixed);
}

fn reseal_manifest(bytes: &mut [u8]) {
    if bytes.len() < MANIFEST_FIXED {
        return;
    }
    let (len, crc) = ((bytes.len() - MANIFEST_FIXED) as u64, crc32c::crc32c(&bytes[MANIFEST_FIXED..]));
    bytes[16..24].copy_from_slice(&len.to_le_bytes());
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    reseal(bytes, MANIFEST_FIXED);
}

fn bends() -> impl Strategy<Value = (Vec<Bend>, bool)> {
    (proptest::collection::vec(bend(), 1..5), prop::bool::weighted(0.9))
}

proptest! {
    #![proptest_config(cases(10_000))]
    #[test]
    fn a_bent_header_is_a_header_or_refused((bends, sealed) in bends(), which in 0usize..2) {
        let mut bytes = headers()[which].encode().expect("encodes");
        bends.iter().for_each(|bend| bend.apply(&mut bytes));
        if sealed {
            reseal_header(&mut bytes);
        }
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert_eq!(header.encode(), Ok(bytes.clone()));
            for page in [0, header.index.page_count() / 2, header.index.page_count(), u32::MAX] {
                let run = header.index.lookup(PageIndex(page));
                prop_assert_eq!(run.is_some(), page < header.index.page_count());
            }
        }
        let _ = FixedPart::decode(&bytes, bytes.len() as u64);
    }

    #[test]
    fn a_bent_manifest_is_a_manifest_or_refused((bends, sealed) in bends(), which in 0usize..2) {
        let mut bytes = manifests()[which].encode().expect("encodes");
        bends.iter().for_each(|bend| bend.apply(&mut bytes));
        if sealed {
            reseal_manifest(&mut bytes);
        }
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(manifest.encode(), Ok(bytes));
        }
    }
}

/// What puts a bent file right is right itself.
#[test]
fn putting_a_file_right_changes_nothing_in_a_good_one() {
    for good in headers().map(|header| header.encode().expect("encodes")) {
        let mut bytes = good.clone();
        reseal_header(&mut bytes);
        assert_eq!(bytes, good);
    }
    for good in manifests().map(|manifest| manifest.encode().expect("encodes")) {
        let mut bytes = good.clone();
        reseal_manifest(&mut bytes);
        assert_eq!(bytes, good);
    }
}
