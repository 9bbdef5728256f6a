//! The files of every version of the format, as they were once written.

use std::{collections::BTreeMap, path::PathBuf};

use super::*;
use crate::{
    page::{PAGE_BYTES, PageIndex, PageRange},
    space::Space,
};

/// What the files are to hold: two generations with fixed names and times, in which every table has entries.
fn write_all(store: &LocalStore) -> Vec<u8> {
    let mut memory = vec![0x11; 4 * PAGE_BYTES];
    memory[3 * PAGE_BYTES..].fill(0x22);
    let mut pending = pending(store, FIRST, None);
    pending.write_dirty(Space::Memory, &memory, &[PageRange::new(0, 1), PageRange::new(2, 2)]).expect("written");
    pending.write_dirty(Space::Drive, &[0x33; 2 * PAGE_BYTES], &[PageRange::new(1, 1)]).expect("written");
    pending.write_blob("state", b"device state").expect("written");
    let first = pending.publish(b"metadata").expect("published");

    memory[PAGE_BYTES..2 * PAGE_BYTES].fill(0x44);
    memory[2 * PAGE_BYTES..3 * PAGE_BYTES].fill(0);
    let mut pending = self::pending(store, SECOND, Some(&first));
    pending.write_dirty(Space::Memory, &memory, &[PageRange::new(1, 2)]).expect("written");
    pending.write_blob("a-1", b"").expect("written");
    pending.publish(b"").expect("published");
    memory
}

fn pending(store: &LocalStore, id: u8, parent: Option<&Generation>) -> PendingGeneration {
    let id = GenerationId::from_bytes([id; 16]);
    let mut pending = PendingGeneration::new(Arc::clone(&store.shared), id, parent, store.compression).expect("begun");
    pending.set_created(1_700_000_000_000 + u64::from(id.as_bytes()[0]));
    pending
}

/// Every file of a store, by its name inside.
fn files(root: &Root) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for directory in root.list(&root.path).expect("listed") {
        for name in root.list(&root.path.join(&directory)).expect("listed") {
            let path = PathBuf::from(&directory).join(name);
            let bytes = root.read_capped(&root.path.join(&path), u64::MAX).expect("read");
            files.insert(path, bytes);
        }
    }
    files
}

fn golden(name: &str) -> LocalStore {
    LocalStore::open(golden_path(name)).expect("the golden files are a store")
}

fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn the_files_of_version_1_load() {
    check(&golden("v1"));
}

#[cfg(feature = "lz4")]
#[test]
fn the_files_of_version_2_with_lz4_load() {
    check(&golden("v2-lz4"));
}

#[cfg(feature = "zstd")]
#[test]
fn the_files_of_version_2_with_zstd_load() {
    check(&golden("v2-zstd"));
}

/// What this build cannot read it refuses by the name of the feature.
#[cfg(not(any(feature = "lz4", feature = "zstd")))]
#[test]
fn what_is_compressed_is_refused_by_name_where_it_cannot_be_read() {
    for feature in ["lz4", "zstd"] {
        let store = golden(&format!("v2-{feature}"));
        let second = store.load(GenerationId::from_bytes([SECOND; 16])).expect("its own files are there");
        let error = second.reader(Space::Memory).expect_err("nobody can read it").to_string();
        assert!(error.contains(&format!("build wrenn-snapshot with its feature `{feature}`")), "{error}");
    }
}

fn check(store: &LocalStore) {
    let second = store.load(GenerationId::from_bytes([SECOND; 16])).expect("loads");
    let mut memory = vec![9; 4 * PAGE_BYTES];
    second.reader(Space::Memory).expect("a reader").read_at(PageIndex(0), &mut memory).expect("read");
    assert!(memory == write_all(&LocalStore::in_memory().expect("a store")));
    let mut drive = vec![9; 2 * PAGE_BYTES];
    second.reader(Space::Drive).expect("a reader").read_at(PageIndex(0), &mut drive).expect("read");
    assert!(drive == [[0; PAGE_BYTES], [0x33; PAGE_BYTES]].concat());
    assert_eq!(second.created_unix_ms(), 1_700_000_000_000 + u64::from(SECOND));
    assert_eq!(second.blob("a-1").expect("a blob"), b"");

    let first = store.load(second.parent().expect("a parent")).expect("loads");
    assert_eq!(first.metadata(), b"metadata");
    assert_eq!(first.blob("state").expect("a blob"), b"device state");
    assert_eq!(first.space(Space::Memory).expect("a space").own_data_pages, 3);
}

#[test]
fn what_is_written_today_is_version_1_byte_for_byte() {
    let store = LocalStore::in_memory().expect("a store");
    write_all(&store);
    let (written, golden) = (files(&store.shared.root), files(&golden("v1").shared.root));
    assert!(written.keys().eq(golden.keys()), "{:?}", written.keys());
    for (path, bytes) in &golden {
        assert!(written[path] == *bytes, "{}", path.display());
    }
}

/// For a new version: into a directory of its own, and these stay. What is compressed need not come out the same twice,
/// so it is not compared byte for byte.
#[test]
#[ignore = "writes the golden files"]
fn write_the_golden_files() {
    let write = |name, compression| {
        if golden_path(name).exists() {
            return;
        }
        write_all(&LocalStore::open(golden_path(name)).expect("a store").with_compression(compression));
    };
    write("v1", Compression::None);
    #[cfg(feature = "lz4")]
    write("v2-lz4", Compression::Lz4);
    #[cfg(feature = "zstd")]
    write("v2-zstd", Compression::Zstd);
}

const FIRST: u8 = 0x0a;
const SECOND: u8 = 0xb0;
