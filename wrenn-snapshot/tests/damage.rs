//! A generation that cannot be read stops nothing else, and nothing that it might reach is removed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use wrenn_snapshot::{Damage, Error, Generation, GenerationId, LocalStore, PAGE_BYTES, PageIndex, PageRange, Space};

mod seed;

const PAGES: u32 = 4;
const ALL: [PageRange; 1] = [PageRange { start: PageIndex(0), count: PAGES }];
const ONE: [PageRange; 1] = [PageRange { start: PageIndex(0), count: 1 }];

fn open() -> (tempfile::TempDir, LocalStore) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    (dir, store)
}

fn publish(store: &LocalStore, parent: Option<&Generation>, value: u8, dirty: &[PageRange]) -> Generation {
    let mut pending = store.begin(parent).expect("begun");
    pending.write_dirty(Space::Memory, &[value; PAGES as usize * PAGE_BYTES], dirty).expect("written");
    pending.publish(&[value]).expect("published")
}

fn read(store: &LocalStore, id: GenerationId) -> Vec<u8> {
    let mut memory = vec![0; PAGES as usize * PAGE_BYTES];
    let reader = store.load(id).expect("loads").reader(Space::Memory).expect("a reader");
    reader.read_at(PageIndex(0), &mut memory).expect("read");
    memory
}

fn file(store: &LocalStore, id: GenerationId, name: &str) -> PathBuf {
    store.root().join(id.to_string()).join(name)
}

/// Damages a file, and says how to mend it.
fn damage(path: &Path) -> impl FnOnce() + use<> {
    let (path, whole) = (path.to_owned(), fs::read(path).expect("read"));
    fs::write(&path, &whole[..whole.len() / 2]).expect("written");
    move || fs::write(path, whole).expect("mended")
}

fn set(ids: &[GenerationId]) -> BTreeSet<GenerationId> {
    ids.iter().copied().collect()
}

#[test]
fn the_ancestors_of_a_damaged_root_stay_and_the_rest_goes() {
    for name in ["memory.header", "memory.data"] {
        let (_dir, store) = open();
        let first = publish(&store, None, 1, &ALL);
        let second = publish(&store, Some(&first), 2, &ONE);
        let sibling = publish(&store, Some(&first), 7, &ONE);
        let child = publish(&store, Some(&second), 3, &ONE);
        let unrelated = publish(&store, None, 8, &ALL);
        let other = publish(&store, None, 9, &ALL);
        let ids = [&first, &second, &sibling, &child, &unrelated, &other].map(|generation| generation.id());
        let [first_id, second_id, sibling_id, child_id, unrelated_id, other_id] = ids;
        drop((first, second, sibling, child, unrelated, other));
        let mend = damage(&file(&store, second_id, name));
        let roots = [second_id, other_id];

        let refused = store.collect(&roots).expect_err("it is damaged");
        assert!(matches!(refused, Error::Corrupt { generation, .. } if generation == second_id), "{refused:?}");
        assert_eq!(store.list().expect("listed").len(), 6, "nothing was removed");

        let collected = store.collect_around_damage(&roots).expect("collected");
        assert_eq!(set(&collected.removed), set(&[sibling_id, child_id, unrelated_id]), "{name}");
        let [damaged] = &collected.damaged[..] else { panic!("{collected:?}") };
        assert_eq!(damaged.id, second_id);
        assert!(matches!(&damaged.error, Error::Corrupt { damage: Damage::Length { .. }, .. }), "{damaged:?}");
        assert_eq!(collected.spared, [first_id]);
        mend();
        assert_eq!(read(&store, second_id)[PAGE_BYTES..], [1; 3 * PAGE_BYTES]);
        assert_eq!(read(&store, other_id), [9; 4 * PAGE_BYTES]);
        let again = store.collect_around_damage(&roots).expect("collected");
        assert!(again.removed.is_empty() && again.damaged.is_empty() && again.spared.is_empty(), "{again:?}");
    }
}

#[test]
fn where_an_ancestor_is_gone_all_stays_but_what_is_younger() {
    for name in ["memory.header", "manifest"] {
        let (_dir, store) = open();
        let first = publish(&store, None, 1, &ALL);
        let gone = publish(&store, Some(&first), 2, &ONE);
        let root = publish(&store, Some(&gone), 3, &ONE);
        let ids = [&first, &gone, &root].map(Generation::id);
        drop((first, gone));
        assert_eq!(store.collect(&[ids[2]]).expect("collected"), [ids[1]], "nothing of it is left");
        let child = publish(&store, Some(&root), 4, &ONE);
        let grandchild = publish(&store, Some(&child), 5, &ONE);
        let unrelated = publish(&store, None, 8, &ALL).id();
        let younger = [child.id(), grandchild.id()];
        drop((root, child, grandchild));

        let mend = damage(&file(&store, ids[2], name));
        let collected = store.collect_around_damage(&[ids[2]]).expect("collected");
        assert_eq!(set(&collected.removed), set(&younger), "{name}");
        assert_eq!(set(&collected.spared), set(&[ids[0], unrelated]), "{name}: one of them may be meant");
        mend();
        assert_eq!(read(&store, ids[2])[PAGE_BYTES..], [1; 3 * PAGE_BYTES]);
        assert_eq!(store.collect(&[ids[2]]).expect("collected"), [unrelated]);
    }
}

#[test]
fn a_root_that_is_not_there_is_named() {
    let (_dir, store) = open();
    let kept = publish(&store, None, 1, &ALL).id();
    let gone = GenerationId::random();
    let collected = store.collect_around_damage(&[kept, gone, kept]).expect("collected");
    let [damaged] = &collected.damaged[..] else { panic!("{collected:?}") };
    assert!(damaged.id == gone && matches!(damaged.error, Error::NotFound(id) if id == gone));
    assert_eq!((collected.removed, store.list().expect("listed")), (vec![], vec![kept]));
}

#[test]
fn a_damaged_generation_that_is_in_use_is_named_too() {
    let (_dir, store) = open();
    let first = publish(&store, None, 1, &ALL);
    let second = publish(&store, Some(&first), 2, &ONE);
    let garbage = publish(&store, None, 3, &ALL).id();
    let first_id = first.id();
    drop(first);
    let mend = damage(&file(&store, second.id(), "memory.header"));
    let collected = store.collect_around_damage(&[]).expect("collected");
    assert_eq!((collected.removed, collected.spared), (vec![garbage], vec![first_id]));
    assert_eq!(collected.damaged.len(), 1);
    mend();
    assert_eq!(read(&store, second.id())[PAGE_BYTES..], [1; 3 * PAGE_BYTES]);
}

#[test]
fn a_damaged_generation_keeps_no_other_from_being_compacted() {
    let (_dir, store) = open();
    let mut last = publish(&store, None, 1, &ALL);
    let other = publish(&store, None, 1, &ALL).id();
    for value in 0..70 {
        last = publish(&store, Some(&last), value, &[PageRange::new(u32::from(value) % PAGES, 1)]);
        // A page of its own for each, so that all of them stay needed.
        let pages = (usize::from(value) + 1 + PAGES as usize) * PAGE_BYTES;
        let mut pending = store.begin(Some(&last)).expect("begun");
        let own = [PageRange::new(u32::from(value) + PAGES, 1)];
        pending.write_dirty(Space::Drive, &vec![value + 1; pages], &own).expect("written");
        last = pending.publish(b"").expect("published");
    }
    drop(damage(&file(&store, other, "memory.header")));
    let done = store.compact_if_due(&last, &[other, GenerationId::random()]).expect("the other is passed over");
    assert!(done.is_some_and(|done| !done.folded.is_empty()));
}

proptest! {
    #![proptest_config(seed::cases(48))]
    #[test]
    fn whatever_is_damaged_all_roots_are_whole_once_it_is_mended(
        tree in prop::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.2), 0..PAGES, 1..=PAGES), 1..12),
        early in prop::collection::vec(prop::bool::weighted(0.3), 12),
        kept in prop::collection::vec(any::<bool>(), 13),
        damaged in prop::collection::vec(0u8..6, 13),
    ) {
        let (_dir, store) = open();
        let mut memories = vec![vec![1; PAGES as usize * PAGE_BYTES]];
        let mut all = vec![Some(publish(&store, None, 1, &ALL))];
        for (value, (parent, is_first, start, count)) in (2u8..).zip(&tree) {
            let parent = parent.index(all.len());
            let dirty = PageRange::new(*start, (*count).min(PAGES - start));
            let parent = all[parent].as_ref().filter(|_| !is_first).map(|generation| (generation, &memories[parent]));
            let mut memory = parent.map_or_else(|| vec![0; PAGES as usize * PAGE_BYTES], |(_, memory)| memory.clone());
            memory[dirty.start.0 as usize * PAGE_BYTES..][..dirty.count as usize * PAGE_BYTES].fill(value);
            let mut pending = store.begin(parent.map(|(generation, _)| generation)).expect("begun");
            pending.write_dirty(Space::Memory, &memory, &[dirty]).expect("written");
            all.push(Some(pending.publish(b"").expect("published")));
            memories.push(memory);
        }
        let ids: Vec<_> = all.iter().flatten().map(Generation::id).collect();
        // Some go while all is whole, so that lineages have gaps.
        for (generation, goes) in all.iter_mut().zip(&early) {
            generation.take_if(|_| *goes);
        }
        store.collect(&[]).expect("collected");
        let roots: Vec<usize> = (0..all.len()).filter(|at| all[*at].is_some() && kept[*at]).collect();
        drop(all);
        let root_ids: Vec<_> = roots.iter().map(|at| ids[*at]).collect();
        let mends: Vec<_> = roots
            .iter()
            .filter_map(|at| {
                let name = ["manifest", "memory.header", "memory.data"].get(usize::from(damaged[*at]))?;
                let path = file(&store, ids[*at], name);
                (fs::metadata(&path).expect("there").len() > 0).then(|| damage(&path))
            })
            .collect();
        let collected = store.collect_around_damage(&root_ids).expect("collected");
        prop_assert_eq!(collected.damaged.is_empty(), mends.is_empty());
        prop_assert!(collected.spared.is_empty() || !mends.is_empty());
        mends.into_iter().for_each(|mend| mend());
        for at in &roots {
            prop_assert!(read(&store, ids[*at]) == memories[*at]);
        }
        let rest = store.collect(&root_ids).expect("collected");
        prop_assert!(rest.iter().all(|id| collected.spared.contains(id)), "what was kept without need is known");
    }
}
