//! Nothing that a header reaches is ever removed.

use std::collections::BTreeMap;

use proptest::prelude::*;
use wrenn_snapshot::{Error, Generation, GenerationId, LocalStore, PAGE_BYTES, PageIndex, PageRange, Space};

mod seed;

const PAGES: u32 = 6;

fn publish(store: &LocalStore, parent: Option<&Generation>, memory: &[u8], dirty: &[PageRange]) -> Generation {
    let mut pending = store.begin(parent).expect("begun");
    pending.write_dirty(Space::Memory, memory, dirty).expect("written");
    pending.publish(b"").expect("published")
}

fn read(generation: &Generation) -> Vec<u8> {
    let mut memory = vec![0; PAGES as usize * PAGE_BYTES];
    generation.reader(Space::Memory).expect("a reader").read_at(PageIndex(0), &mut memory).expect("read");
    memory
}

fn filled(value: u8) -> Vec<u8> {
    vec![value; PAGES as usize * PAGE_BYTES]
}

const ALL: [PageRange; 1] = [PageRange { start: PageIndex(0), count: PAGES }];

#[test]
fn a_parent_without_a_page_left_goes_and_one_with_a_page_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let first = publish(&store, None, &filled(1), &ALL);
    let second = publish(&store, Some(&first), &filled(2), &[PageRange::new(0, 1)]);
    let third = publish(&store, Some(&second), &filled(3), &ALL);
    let ids = [first.id(), second.id(), third.id()];
    drop((first, second, third));

    assert_eq!(store.collect(&ids[1..]).expect("collected"), [], "the second needs the first");
    let mut removed = store.collect(&ids[2..]).expect("collected");
    removed.sort_unstable();
    let mut expected = ids[..2].to_vec();
    expected.sort_unstable();
    assert_eq!(removed, expected);
    assert_eq!(read(&store.load(ids[2]).expect("loads")), filled(3));
}

#[test]
fn what_is_in_use_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let first = publish(&store, None, &filled(1), &ALL);
    let id = first.id();
    let mut pending = store.begin(Some(&first)).expect("begun");
    drop(first);
    assert_eq!(store.collect(&[]).expect("collected"), [], "a pending generation needs its parent");
    pending.write_dirty(Space::Memory, &filled(2), &[PageRange::new(0, 1)]).expect("written");
    let second = pending.publish(b"").expect("published");
    assert_eq!(store.collect(&[]).expect("collected"), [], "a generation in hand needs its ancestors");
    assert_eq!(read(&second)[PAGE_BYTES..], filled(1)[PAGE_BYTES..]);

    // A reader outlives what it reads.
    let reader = second.reader(Space::Memory).expect("a reader");
    drop(second);
    assert_eq!(store.collect(&[]).expect("collected").len(), 2);
    let mut page = vec![0; PAGE_BYTES];
    reader.read_at(PageIndex(3), &mut page).expect("read");
    assert_eq!(page, filled(1)[..PAGE_BYTES]);
    assert!(matches!(store.load(id), Err(Error::NotFound(_))));
}

#[test]
fn a_root_that_is_not_there_removes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let id = publish(&store, None, &filled(1), &ALL).id();
    let gone = GenerationId::random();
    assert!(matches!(store.collect(&[gone]), Err(Error::NotFound(id)) if id == gone));
    assert_eq!(store.list().expect("listed"), [id]);
}

proptest! {
    #![proptest_config(seed::cases(32))]
    #[test]
    fn whatever_tree_is_collected_the_roots_read_as_before(
        tree in proptest::collection::vec((any::<prop::sample::Index>(), 0..PAGES, 1..=PAGES), 1..8),
        kept in proptest::collection::vec(any::<bool>(), 8),
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = LocalStore::open(dir.path()).expect("a store");
        let mut lineage = vec![(publish(&store, None, &filled(1), &ALL), filled(1))];
        for (value, (parent, start, count)) in (2u8..).zip(&tree) {
            let (parent, memory) = parent.get(&lineage);
            let dirty = PageRange::new(*start, (*count).min(PAGES - start));
            let mut memory = memory.clone();
            memory[dirty.start.0 as usize * PAGE_BYTES..][..dirty.count as usize * PAGE_BYTES].fill(value);
            let generation = publish(&store, Some(parent), &memory, &[dirty]);
            lineage.push((generation, memory));
        }
        let roots: BTreeMap<_, _> = lineage
            .iter()
            .zip(kept.iter().chain(std::iter::repeat(&true)))
            .filter(|(_, kept)| **kept)
            .map(|((generation, memory), _)| (generation.id(), memory.clone()))
            .collect();
        drop(lineage);
        let ids: Vec<_> = roots.keys().copied().collect();
        let removed = store.collect(&ids).expect("collected");
        prop_assert!(removed.iter().all(|id| !roots.contains_key(id)));
        let again = LocalStore::open(dir.path()).expect("opens again");
        for (id, memory) in &roots {
            prop_assert!(&read(&again.load(*id).expect("loads")) == memory);
        }
        prop_assert_eq!(again.collect(&ids).expect("collected"), vec![], "once is enough");
    }
}
