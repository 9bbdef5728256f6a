//! Whatever the bytes, parsing gives a value or a named damage.

use proptest::prelude::*;

use super::{header::*, *};
use crate::{
    extents::{Extent, ExtentIndex, Storage},
    page::PageIndex,
};

fn id(number: u8) -> GenerationId {
    GenerationId::from_bytes([number; 16])
}

pub(super) fn header() -> Header {
    let extents = vec![
        Extent { start: PageIndex(0), count: 2, storage: Storage::Data { generation: 0, offset: 1 } },
        Extent { start: PageIndex(4), count: 3, storage: Storage::Zero },
        Extent { start: PageIndex(9), count: 1, storage: Storage::Data { generation: 1, offset: 77 } },
    ];
    let index = ExtentIndex::new(10, vec![id(7), id(8)], extents).expect("the extents are an index");
    Header { generation: id(7), space: Space::Drive, index, page_crcs: vec![1, 2, 3] }
}

pub(super) fn manifest() -> Manifest {
    Manifest {
        id: id(7),
        parent: Some(id(8)),
        created_unix_ms: 1_700_000_000_000,
        spaces: vec![SpaceRecord {
            space: Space::Memory,
            page_count: 10,
            header_len: 100,
            header_crc: 5,
            data_len: 8192,
        }],
        blobs: vec![BlobRecord { name: "state".into(), len: 9, crc: 4 }],
        metadata: b"who made it".to_vec(),
    }
}

#[test]
fn what_is_encoded_is_what_is_decoded() {
    assert_eq!(Header::decode(&header().encode().expect("encodes")), Ok(header()));
    assert_eq!(Manifest::decode(&manifest().encode().expect("encodes")), Ok(manifest()));
}

#[test]
fn every_flipped_bit_is_refused() {
    let (header, manifest) = (header().encode().expect("encodes"), manifest().encode().expect("encodes"));
    for bit in 0..header.len() * 8 {
        let mut bytes = header.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Header::decode(&bytes).is_err(), "header bit {bit}");
    }
    for bit in 0..manifest.len() * 8 {
        let mut bytes = manifest.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Manifest::decode(&bytes).is_err(), "manifest bit {bit}");
    }
}

#[test]
fn every_other_length_is_refused() {
    let (mut header, mut manifest) = (header().encode().expect("encodes"), manifest().encode().expect("encodes"));
    for len in 0..header.len() {
        assert!(Header::decode(&header[..len]).is_err(), "header of {len} bytes");
    }
    for len in 0..manifest.len() {
        assert!(Manifest::decode(&manifest[..len]).is_err(), "manifest of {len} bytes");
    }
    header.push(0);
    manifest.push(0);
    assert!(matches!(Header::decode(&header), Err(Damage::Length { .. })));
    assert!(matches!(Manifest::decode(&manifest), Err(Damage::Length { .. })));
}

#[test]
fn another_version_is_refused_by_number() {
    let mut bytes = header().encode().expect("encodes");
    bytes[8] = 9;
    assert_eq!(Header::decode(&bytes), Err(Damage::Version(9)));
}

#[test]
fn the_first_bytes_never_change() {
    let bytes = header().encode().expect("encodes");
    assert_eq!(&bytes[..12], b"WRENNHDR\x01\0\0\0");
    assert_eq!(bytes.len(), 80 + 2 * 16 + 3 * 16 + 3 * 4);
    assert_eq!(&bytes[80 + 2 * 16 + 16..][..16], b"\x04\0\0\0\x03\0\0\0\xff\xff\xff\xff\0\0\0\0");
    assert_eq!(&manifest().encode().expect("encodes")[..12], b"WRENNGEN\x01\0\0\0");
}

#[test]
fn caps_hold_for_writing_too() {
    let large = Manifest { metadata: vec![0; METADATA_BYTES_MAX + 1], ..manifest() };
    assert_eq!(large.encode(), Err(Damage::Cap("metadata length")));
    let large = Header { index: ExtentIndex::empty(PAGES_MAX + 1), ..header() };
    assert_eq!(large.encode(), Err(Damage::Cap("page count")));
    for name in ["", "a/b", "..", "State", &"a".repeat(65)] {
        assert!(!is_blob_name(name), "{name}");
    }
}

/// Puts right the checksum of a fixed part, so that a test reaches what is behind it.
pub(super) fn reseal(bytes: &mut [u8], fixed: usize) {
    let crc = crc32c::crc32c(&bytes[..fixed - CRC_LEN]);
    bytes[fixed - CRC_LEN..fixed].copy_from_slice(&crc.to_le_bytes());
}

proptest! {
    #[test]
    fn strange_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Header::decode(&bytes);
        let _ = Manifest::decode(&bytes);
    }

    #[test]
    fn strange_bytes_with_good_checksums_never_panic(at in 12usize..76, value in any::<u8>(), len in 76usize..400) {
        let mut bytes = header().encode().expect("encodes");
        bytes[at] = value;
        bytes.resize(len.max(HEADER_FIXED), value);
        reseal(&mut bytes, HEADER_FIXED);
        let _ = Header::decode(&bytes);
    }

    #[test]
    fn a_strange_record_with_good_checksums_never_panics(record in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = manifest().encode().expect("encodes");
        bytes.truncate(MANIFEST_FIXED);
        bytes[16..24].copy_from_slice(&(record.len() as u64).to_le_bytes());
        bytes[24..28].copy_from_slice(&crc32c::crc32c(&record).to_le_bytes());
        reseal(&mut bytes, MANIFEST_FIXED);
        bytes.extend_from_slice(&record);
        let _ = Manifest::decode(&bytes);
    }
}
