//! Compressed generations hold what plain ones do, whoever reads them, and whatever is damaged is found.
#![cfg(all(feature = "lz4", feature = "zstd"))]

use std::fs;

use guest::{Guest, checksum, serving::Serving};
use proptest::prelude::*;
use wrenn_snapshot::{
    CompactPolicy, Compression, Error, Features, Generation, LocalStore, PAGE_BYTES, PageIndex, PageRange, PageServer,
    PageSource, ServeOptions, Space, WorkingSet,
};

mod guest;
mod seed;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

const BOTH: [Compression; 2] = [Compression::Lz4, Compression::Zstd];
const PAGES: u32 = 96;

/// Pages of which some compress well, some do not, and some are zeros.
fn memory(seed: u64) -> Vec<u8> {
    let mut random = seed;
    let mut bytes = vec![0; PAGES as usize * PAGE_BYTES];
    for (number, page) in bytes.chunks_exact_mut(PAGE_BYTES).enumerate() {
        let noisy = match (number + usize::try_from(seed % 3).expect("small")) % 7 {
            0 => 0,
            1..=4 => 300,
            _ => PAGE_BYTES,
        };
        for byte in &mut page[..noisy] {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = random.to_le_bytes()[7];
        }
    }
    bytes
}

fn publish(store: &LocalStore, parent: Option<&Generation>, memory: &[u8], dirty: &[PageRange]) -> Generation {
    let mut pending = store.begin(parent).expect("begun");
    pending.write_dirty(Space::Memory, memory, dirty).expect("written");
    pending.publish(b"").expect("published")
}

fn whole(generation: &Generation) -> wrenn_snapshot::Result<Vec<u8>> {
    let mut bytes = vec![0xee; PAGES as usize * PAGE_BYTES];
    generation.reader(Space::Memory)?.read_at(PageIndex(0), &mut bytes)?;
    Ok(bytes)
}

const ALL: [PageRange; 1] = [PageRange { start: PageIndex(0), count: PAGES }];

#[test]
fn a_compressed_generation_is_smaller_and_reads_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let memory = memory(1);
    let plain = publish(&store, None, &memory, &ALL);
    for compression in BOTH {
        let compressed = publish(&store.clone().with_compression(compression), None, &memory, &ALL);
        let compressed = store.load(compressed.id()).expect("loads");
        assert!(whole(&compressed).expect("read") == memory, "{compression:?}");
        let stats = |generation: &Generation| generation.space(Space::Memory).expect("a space");
        assert_eq!(stats(&compressed), stats(&plain), "the index is the same");
        assert!(compressed.written_bytes() * 2 < plain.written_bytes(), "{}", compressed.written_bytes());
        let file = fs::metadata(dir.path().join(compressed.id().to_string()).join("memory.data")).expect("it is there");
        assert_eq!(file.len(), compressed.written_bytes());

        let copy = tempfile::tempfile().expect("a file");
        compressed.reader(Space::Memory).expect("a reader").copy_into(&copy, "the copy".as_ref()).expect("copied");
        let mut copied = vec![1; memory.len()];
        std::os::unix::fs::FileExt::read_exact_at(&copy, &mut copied, 0).expect("read");
        assert!(copied == memory, "{compression:?}");
    }
}

proptest! {
    #![proptest_config(seed::cases(256))]

    /// Runs of any length from any page on, as faults ask for them, in a lineage of all kinds.
    #[test]
    fn any_part_reads_as_it_was_written(
        writes in prop::collection::vec((0..PAGES, 1u32..40, 0usize..3, any::<u64>()), 1..6),
        reads in prop::collection::vec((0..PAGES, 1u32..80), 1..60),
        fold in any::<bool>(),
    ) {
        let store = LocalStore::in_memory().expect("a store");
        let mut model = memory(3);
        let mut last = publish(&store.clone().with_compression(Compression::Zstd), None, &model, &ALL);
        for (start, count, how, seed) in writes {
            let dirty = PageRange::new(start, count.min(PAGES - start));
            let bytes = start as usize * PAGE_BYTES..(start + dirty.count) as usize * PAGE_BYTES;
            model[bytes.clone()].copy_from_slice(&memory(seed)[bytes]);
            let compression = [Compression::None, Compression::Lz4, Compression::Zstd][how];
            last = publish(&store.clone().with_compression(compression), Some(&last), &model, &[dirty]);
        }
        if fold {
            let policy = CompactPolicy { live_percent_min: 80, generations_max: 2 };
            last = store.clone().with_compression(Compression::Lz4).compact(&last, policy).expect("compacted").generation;
        }
        let reader = last.reader(Space::Memory).expect("a reader");
        let mut scratch = vec![0; 32 * PAGE_BYTES];
        for (first, count) in reads {
            let count = count.min(PAGES - first);
            let mut bytes = vec![0xee; count as usize * PAGE_BYTES];
            reader.read_at(PageIndex(first), &mut bytes).expect("read");
            prop_assert!(bytes == model[first as usize * PAGE_BYTES..][..bytes.len()]);
            let run = reader.run(PageIndex(first), count, &mut scratch).expect("read");
            let there = run.pages() as usize * PAGE_BYTES;
            let expected = &model[first as usize * PAGE_BYTES..][..there];
            match run {
                wrenn_snapshot::PageRun::Data(bytes) => prop_assert!(bytes == expected),
                wrenn_snapshot::PageRun::Zero(_) => prop_assert!(expected.iter().all(|byte| *byte == 0)),
            }
        }
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_found_and_its_file_is_named() {
    for compression in BOTH {
        let dir = tempfile::tempdir().expect("a directory");
        let store = LocalStore::open(dir.path()).expect("a store").with_compression(compression);
        // Few bytes, so that all of them can be tried: the tail of a chunk is one too.
        let memory = vec![7; PAGES as usize * PAGE_BYTES];
        let id = publish(&store, None, &memory, &[PageRange::new(3, 6)]).id();
        let read = || store.load(id).and_then(|generation| whole(&generation));
        for name in ["memory.data", "memory.header", "manifest"] {
            let path = dir.path().join(id.to_string()).join(name);
            let good = fs::read(&path).expect("read");
            assert!(good.len() < 1000, "{} bytes", good.len());
            let refused = |bytes: &[u8], what: &str| {
                fs::write(&path, bytes).expect("written");
                match read() {
                    Err(Error::Corrupt { file, .. }) => assert_eq!(file, name, "{compression:?} {what}"),
                    other => panic!("{compression:?} {name} {what}: {:?}", other.map(|bytes| bytes.len())),
                }
            };
            for bit in 0..good.len() * 8 {
                let mut bytes = good.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                refused(&bytes, &format!("bit {bit}"));
            }
            (0..good.len()).for_each(|len| refused(&good[..len], &format!("cut to {len}")));
            refused(&[&good[..], &[0]].concat(), "one byte more");
            fs::write(&path, &good).expect("written");
        }
        assert!(read().expect("it is whole again")[3 * PAGE_BYTES..9 * PAGE_BYTES] == memory[..6 * PAGE_BYTES]);
    }
}

#[test]
fn a_guest_gets_its_pages_from_a_compressed_lineage_and_has_them_read_ahead() {
    let name = "a_guest_gets_its_pages_from_a_compressed_lineage";
    for compression in BOTH {
        let store = LocalStore::in_memory().expect("a store").with_compression(compression);
        let mut memory = memory(5);
        let first = publish(&store, None, &memory, &ALL);
        memory[11 * PAGE_BYTES..13 * PAGE_BYTES].fill(0xab);
        let last = publish(&store, Some(&first), &memory, &[PageRange::new(11, 2)]);
        let mut ahead = WorkingSet::new();
        ahead.record(PageRange::new(10, 30));
        for prefetch in [None, Some(ahead)] {
            let Some((mut guest, uffd, _tracker)) = Guest::armed(name, PAGES, Features::SERVE_AND_TRACK) else {
                return;
            };
            let source = Box::new(last.reader(Space::Memory).expect("a reader"));
            let is_ahead = prefetch.is_some();
            let options = ServeOptions { prefetch, fault_around_bytes: 8192, ..ServeOptions::default() };
            let server = PageServer::new(uffd.try_clone().expect("a copy"), vec![guest.region], source, options);
            let serving = Serving::start(server.expect("it fits"));
            if is_ahead {
                serving.wait_for(|report| report.prefetch_hits == 30);
            }
            for page in guest::shuffled(PAGES) {
                let expected = &memory[page as usize * PAGE_BYTES..][..PAGE_BYTES];
                assert_eq!(guest.read(page), checksum(expected), "{compression:?} page {page}");
            }
            assert_eq!(guest.read_all(), checksum(&memory));
            let report = serving.end();
            assert_eq!(report.background_failures, 0, "{report:?}");
        }
    }
}
