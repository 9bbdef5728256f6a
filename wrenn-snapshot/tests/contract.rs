//! What every store promises, wherever it keeps its generations.

use std::io::{Read, Write};

use wrenn_snapshot::{
    Error, Generation, GenerationId, LocalStore, PAGE_BYTES, PageIndex, PageRange, PageSource, Space,
};

const PAGES: u32 = 8;

/// Runs each promise as a test of its own on each store.
macro_rules! contract {
    ($($promise:ident),+ $(,)?) => {
        mod in_a_directory {
            $(#[test]
            fn $promise() {
                let dir = tempfile::tempdir().expect("a directory");
                super::$promise(&super::LocalStore::open(dir.path()).expect("a store"));
            })+
        }
        mod in_memory {
            $(#[test]
            fn $promise() {
                super::$promise(&super::LocalStore::in_memory().expect("a store"));
            })+
        }
    };
}

contract! {
    what_is_published_is_what_is_read,
    nothing_is_seen_before_it_is_published,
    what_is_not_there_is_named,
    a_space_is_copied_with_its_holes,
    a_blob_is_read_by_descriptor_too,
    what_is_in_use_stays_and_the_rest_goes,
    what_generations_reach_is_counted_once,
    threads_that_publish_and_collect_do_not_harm_each_other,
}

fn publish(store: &LocalStore, parent: Option<&Generation>, memory: &[u8], dirty: &[PageRange]) -> Generation {
    let mut pending = store.begin(parent).expect("begun");
    pending.write_dirty(Space::Memory, memory, dirty).expect("written");
    pending.write_blob("state", b"device state").expect("written");
    pending.publish(b"metadata").expect("published")
}

fn filled(value: u8) -> Vec<u8> {
    vec![value; PAGES as usize * PAGE_BYTES]
}

fn all() -> [PageRange; 1] {
    [PageRange::new(0, PAGES)]
}

fn read(generation: &Generation) -> Vec<u8> {
    let mut memory = filled(0xee);
    generation.reader(Space::Memory).expect("a reader").read_at(PageIndex(0), &mut memory).expect("read");
    memory
}

fn what_is_published_is_what_is_read(store: &LocalStore) {
    let first = publish(store, None, &filled(1), &all());
    let mut memory = filled(1);
    memory[PAGE_BYTES..2 * PAGE_BYTES].fill(2);
    memory[3 * PAGE_BYTES..4 * PAGE_BYTES].fill(0);
    let second = publish(store, Some(&first), &memory, &[PageRange::new(1, 1), PageRange::new(3, 1)]);
    let mut listed = [first.id(), second.id()];
    listed.sort_unstable();
    assert_eq!(store.list().expect("listed"), listed);
    for generation in [&second, &store.load(second.id()).expect("loads")] {
        assert!(read(generation) == memory);
        assert_eq!(generation.blob("state").expect("a blob"), b"device state");
        assert_eq!((generation.metadata(), generation.parent()), (&b"metadata"[..], Some(first.id())));
        assert_eq!(generation.written_bytes(), PAGE_BYTES as u64 + 12);
        assert!(generation.bytes_on_disk().expect("counted") >= PAGE_BYTES as u64);
    }
    assert!(read(&first) == filled(1), "a child changes nothing");
}

fn nothing_is_seen_before_it_is_published(store: &LocalStore) {
    let mut pending = store.begin(None).expect("begun");
    pending.write_dirty(Space::Memory, &filled(1), &all()).expect("written");
    let id = pending.id();
    assert_eq!(store.list().expect("listed"), []);
    assert!(matches!(store.load(id), Err(Error::NotFound(_))));
    drop(pending);
    assert_eq!(store.collect(&[]).expect("collected"), []);
}

fn what_is_not_there_is_named(store: &LocalStore) {
    let id = GenerationId::random();
    assert!(matches!(store.load(id), Err(Error::NotFound(missing)) if missing == id));
    assert!(matches!(store.collect(&[id]), Err(Error::NotFound(missing)) if missing == id));
    let generation = publish(store, None, &filled(1), &all());
    assert!(matches!(generation.reader(Space::Drive), Err(Error::Missing { .. })));
    assert!(matches!(generation.blob("other"), Err(Error::Missing { .. })));
    assert!(matches!(generation.open_blob("other"), Err(Error::Missing { .. })));
}

fn what_generations_reach_is_counted_once(store: &LocalStore) {
    let first = publish(store, None, &filled(1), &all());
    let one = publish(store, Some(&first), &filled(2), &[PageRange::new(1, 1)]);
    let other = publish(store, Some(&first), &filled(3), &[PageRange::new(2, 1)]);
    let size = |generation: &Generation| generation.bytes_on_disk().expect("counted");
    let reached = |ids: &[&Generation], without: &[&Generation]| {
        let [ids, without] = [ids, without].map(|of| of.iter().map(|one| one.id()).collect::<Vec<_>>());
        store.reached_bytes(&ids, &without).expect("counted")
    };
    assert_eq!(reached(&[&one], &[]), size(&first) + size(&one));
    assert_eq!(reached(&[&one, &other, &one], &[]), size(&first) + size(&one) + size(&other));
    assert_eq!(reached(&[&one, &other], &[&first]), size(&one) + size(&other));
    assert_eq!((reached(&[&first], &[&one]), reached(&[], &[&one])), (0, 0));
    assert_eq!(store.reached_bytes(&[GenerationId::random()], &[]).expect("counted"), 0, "it is not there");
}

fn a_space_is_copied_with_its_holes(store: &LocalStore) {
    let mut memory = filled(1);
    memory[2 * PAGE_BYTES..5 * PAGE_BYTES].fill(0);
    let generation = publish(store, None, &memory, &all());
    let mut copy = tempfile::NamedTempFile::new().expect("a file");
    copy.write_all(b"what was there before").expect("written");
    let reader = generation.reader(Space::Memory).expect("a reader");
    reader.copy_into(copy.as_file(), copy.path()).expect("copied");
    assert!(std::fs::read(copy.path()).expect("read") == memory);

    // And comes back as it was.
    let mut pending = store.begin(None).expect("begun");
    let report = pending.write_sparse(Space::Memory, copy.as_file()).expect("written");
    assert_eq!(report.data_pages, 5);
    let again = pending.publish(b"").expect("published");
    assert!(read(&again) == memory);
    let mut pending = store.begin(Some(&again)).expect("begun");
    let report = pending.write_compared(Space::Memory, copy.as_file()).expect("written");
    assert_eq!((report.data_pages, report.zero_pages), (0, 0), "nothing has changed");
}

fn a_blob_is_read_by_descriptor_too(store: &LocalStore) {
    let generation = publish(store, None, &filled(1), &all());
    for _ in 0..2 {
        let mut bytes = Vec::new();
        generation.open_blob("state").expect("opened").read_to_end(&mut bytes).expect("read");
        assert_eq!(bytes, b"device state");
    }
}

fn what_is_in_use_stays_and_the_rest_goes(store: &LocalStore) {
    let first = publish(store, None, &filled(1), &all());
    let second = publish(store, Some(&first), &filled(2), &[PageRange::new(0, 1)]);
    let third = publish(store, Some(&second), &filled(3), &all());
    drop(first);
    assert_eq!(store.collect(&[]).expect("collected"), []);
    let reader = second.reader(Space::Memory).expect("a reader");
    drop(second);
    assert_eq!(store.collect(&[third.id()]).expect("collected").len(), 2);
    assert_eq!(store.list().expect("listed"), [third.id()]);
    let mut page = vec![0; PAGE_BYTES];
    reader.run(PageIndex(5), 1, &mut page).expect("a reader outlives what it reads");
    drop(third);
    assert_eq!(store.collect(&[]).expect("collected").len(), 1);
}

fn threads_that_publish_and_collect_do_not_harm_each_other(store: &LocalStore) {
    std::thread::scope(|scope| {
        for value in 1..4 {
            scope.spawn(move || {
                let mut last = publish(store, None, &filled(value), &all());
                for _ in 0..10 {
                    last = publish(store, Some(&last), &filled(value), &[PageRange::new(u32::from(value), 1)]);
                    assert!(read(&store.load(last.id()).expect("in use")) == filled(value));
                }
            });
        }
        for _ in 0..20 {
            store.collect(&[]).expect("collected");
        }
    });
    store.collect(&[]).expect("collected");
    assert_eq!(store.list().expect("listed"), []);
}
