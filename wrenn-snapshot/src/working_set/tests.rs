//! What was recorded is read back, and nothing else is.

use std::fs;

use proptest::prelude::*;

use crate::{
    error::Error,
    page::PageRange,
    seed::cases,
    working_set::{WorkingSet, format::MAGIC},
};

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

#[test]
fn the_pieces_of_a_window_are_one_run() {
    assert_eq!(
        set(&[(20, 1), (16, 4), (21, 11), (99, 1), (32, 1)]).runs(),
        [PageRange::new(16, 16), PageRange::new(99, 1), PageRange::new(32, 1)]
    );
}

#[test]
fn a_file_is_replaced_in_one_step_and_damage_is_told_from_absence() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("working-set");
    assert_eq!(WorkingSet::load(&path).expect("absent"), None);
    fs::write(dir.path().join("working-set.part"), b"left by a crash").expect("written");
    for set in [set(&[(3, 4)]), set(&[(9, 1), (3, 4)])] {
        set.store(&path).expect("stored");
        assert_eq!(WorkingSet::load(&path).expect("whole"), Some(set));
    }
    let names = fs::read_dir(dir.path()).expect("listed").count();
    assert_eq!(names, 1, "nothing is left over");
    fs::write(&path, b"rubbish").expect("written");
    assert!(matches!(WorkingSet::load(&path), Err(Error::Io { .. })));
}

proptest! {
    #![proptest_config(cases(10_000))]

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
            prop_assert_eq!(set.runs().iter().map(|run| run.count).sum::<u32>(), set.page_count());
            prop_assert!(set.runs().iter().all(|run| run.end() <= u64::from(u32::MAX)));
        }
    }
}
