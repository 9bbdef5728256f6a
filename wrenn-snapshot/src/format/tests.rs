//! Whatever the bytes, parsing gives a value or a named damage.

use proptest::prelude::*;

use crate::{
    chunks::ChunkTable,
    compression::Codec,
    damage::Damage,
    extents::{Extent, ExtentIndex, Storage},
    format::{fields::*, header::*, manifest::*},
    id::GenerationId,
    page::PageIndex,
    seed::cases,
    space::Space,
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
    Header { generation: id(7), space: Space::Drive, index, page_crcs: vec![1, 2, 3], chunks: None }
}

/// As [`header`], of a data file in chunks.
pub(super) fn compressed_header() -> Header {
    let chunks = ChunkTable::new(Codec::Zstd, 2, 3, [(100, 5), (4096, 6)].into_iter()).expect("two chunks");
    Header { chunks: Some(chunks), ..header() }
}

/// A manifest of a compressed space and of one that is not.
pub(super) fn compressed_manifest() -> Manifest {
    let plain = manifest().spaces.remove(0);
    let (data_len, data_pages, codec) = (4196, 3, Some(Codec::Zstd));
    let compressed = SpaceRecord { space: Space::Drive, data_len, data_pages, codec, ..plain.clone() };
    Manifest { spaces: vec![plain, compressed], ..manifest() }
}

pub(super) fn headers() -> [Header; 2] {
    [header(), compressed_header()]
}

pub(super) fn manifests() -> [Manifest; 2] {
    [manifest(), compressed_manifest()]
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
            data_pages: 2,
            codec: None,
        }],
        blobs: vec![BlobRecord { name: "state".into(), len: 9, crc: 4 }],
        metadata: b"who made it".to_vec(),
    }
}

#[test]
fn what_is_encoded_is_what_is_decoded() {
    for header in headers() {
        assert_eq!(Header::decode(&header.encode().expect("encodes")), Ok(header));
    }
    for manifest in manifests() {
        assert_eq!(Manifest::decode(&manifest.encode().expect("encodes")), Ok(manifest));
    }
}

/// Everything that is one bit off.
fn flipped(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len() * 8).map(|bit| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        (bit, bytes)
    })
}

#[test]
fn every_flipped_bit_is_refused() {
    for header in headers() {
        for (bit, bytes) in flipped(&header.encode().expect("encodes")) {
            assert!(Header::decode(&bytes).is_err(), "header bit {bit}");
        }
    }
    for manifest in manifests() {
        for (bit, bytes) in flipped(&manifest.encode().expect("encodes")) {
            assert!(Manifest::decode(&bytes).is_err(), "manifest bit {bit}");
        }
    }
}

#[test]
fn every_other_length_is_refused() {
    for header in headers() {
        let mut bytes = header.encode().expect("encodes");
        for len in 0..bytes.len() {
            assert!(Header::decode(&bytes[..len]).is_err(), "header of {len} bytes");
        }
        bytes.push(0);
        assert!(matches!(Header::decode(&bytes), Err(Damage::Length { .. })));
    }
    for manifest in manifests() {
        let mut bytes = manifest.encode().expect("encodes");
        for len in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..len]).is_err(), "manifest of {len} bytes");
        }
        bytes.push(0);
        assert!(matches!(Manifest::decode(&bytes), Err(Damage::Length { .. })));
    }
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

    let bytes = compressed_header().encode().expect("encodes");
    assert_eq!(&bytes[..12], b"WRENNHDR\x02\0\0\0");
    assert_eq!(bytes.len(), 88 + 2 * 16 + 3 * 16 + 3 * 4 + 2 * 8);
    assert_eq!(&bytes[72..80], b"\x02\0\0\0\x02\0\0\0");
    assert_eq!(&bytes[bytes.len() - 16..], b"\x64\0\0\0\x05\0\0\0\0\x10\0\0\x06\0\0\0");
    assert_eq!(&compressed_manifest().encode().expect("encodes")[..12], b"WRENNGEN\x02\0\0\0");
}

#[test]
fn a_chunk_table_is_one_or_is_refused() {
    let table = |chunk_pages, data_pages, lens: &[u32]| {
        ChunkTable::new(Codec::Lz4, chunk_pages, data_pages, lens.iter().map(|len| (*len, 0)))
    };
    assert!(table(2, 3, &[8192, 4096]).is_ok());
    for (chunk_pages, data_pages, lens) in [
        (2, 3, &[8193, 4096][..]),
        (2, 3, &[8192, 4097]),
        (2, 3, &[0, 4096]),
        (2, 3, &[8192]),
        (2, 3, &[8192, 4096, 1]),
        (3, 3, &[100]),
        (512, 3, &[100]),
        (0, 0, &[]),
    ] {
        assert!(table(chunk_pages, data_pages, lens).is_err(), "{chunk_pages} {data_pages} {lens:?}");
    }
    let mut bytes = compressed_header().encode().expect("encodes");
    bytes[72] = 9;
    reseal(&mut bytes, HEADER_FIXED_COMPRESSED);
    assert_eq!(Header::decode(&bytes), Err(Damage::Contents("unknown kind of compression")));
}

#[test]
fn a_version_is_not_used_without_need() {
    let mut bytes = compressed_manifest().encode().expect("encodes");
    // The last number of the last space is its codec; two blob fields and the metadata follow.
    let codec = bytes.windows(8).rposition(|pair| pair == [3, 0, 0, 0, 2, 0, 0, 0]).expect("pages and codec") + 4;
    bytes[codec] = 0;
    let crc = crc32c::crc32c(&bytes[MANIFEST_FIXED..]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    reseal(&mut bytes, MANIFEST_FIXED);
    assert_eq!(Manifest::decode(&bytes), Err(Damage::Contents("a data file is not whole pages")));
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
    #![proptest_config(cases(256))]

    #[test]
    fn strange_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Header::decode(&bytes);
        let _ = Manifest::decode(&bytes);
    }

    #[test]
    fn strange_bytes_with_good_checksums_never_panic(at in 12usize..84, value in any::<u8>(), len in 84usize..400) {
        for (header, fixed) in headers().into_iter().zip([HEADER_FIXED, HEADER_FIXED_COMPRESSED]) {
            let mut bytes = header.encode().expect("encodes");
            bytes[at] = value;
            bytes.resize(len.max(fixed), value);
            reseal(&mut bytes, fixed);
            let _ = Header::decode(&bytes);
        }
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
