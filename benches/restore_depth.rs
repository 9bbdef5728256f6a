//! What a long lineage costs a restore and a collection: the same memory, at depth 10, 64, 100 and 2,500, beside depth 1.
//!
//! `restore_depth_…` loads the generation, opens its memory, and reads every page in the random order of a guest's
//! faults. `…/open` is the loading and opening alone. The look-up costs the same at any depth, and so does a page that
//! is read again and again; what is left at depth 100 is what the kernel keeps of a hundred files (the open file, its
//! inode, the tree of its pages), which no longer is in the processor's caches by the time a file's turn comes again.
//!
//! Half of the difference is the opening: some 11 us for each ancestor, of which three quarters are in the kernel (two
//! files opened 26 %, their sizes and that of a third path 14 %, two reads 10 %, one closed 8 %). To read a header by one
//! read of its first 16 KiB is slower, since what is wanted of it comes after an extent table as long as the lineage.
//!
//! Compaction bounds how many files there are, by default to the 64. The lineage of 2,500 is compacted whenever that is
//! due, as a sandbox's is, and what nothing needs of it is collected: `collect_2500` is a collection that finds nothing
//! to remove, beside the same of a store with one generation.

use wrenn_snapshot::{Generation, GenerationId, LocalStore, PAGE_BYTES, PageIndex, PageRange, PageSource, Space};

mod support;
use support::{Goal, in_turns, note, report_percentiles, time};

fn main() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(directory.path()).expect("a store");
    let order = order();
    let flat = lineage(&store, 1, Compaction::Never);
    let depths = [10, 64, 100].map(|depth| (depth, Compaction::Never));
    for (depth, compaction) in depths.into_iter().chain([(2500, Compaction::WhenDue)]) {
        let deep = lineage(&store, depth, compaction);
        let restore = |id: GenerationId| {
            let mut page = vec![0; PAGE_BYTES];
            time(|| {
                let reader = store.load(id).and_then(|generation| generation.reader(Space::Memory)).expect("a reader");
                for number in &order {
                    reader.run(*number, 1, &mut page).expect("read");
                }
            })
        };
        let [values, references] = in_turns(ROUNDS, 1, || restore(deep.id()), || restore(flat.id()));
        let goals = [Goal::AtMost(1.1), Goal::None];
        report_percentiles(&format!("restore_depth_{depth}"), "ns", &values, &references, goals);

        let open = |id: GenerationId| {
            time(|| store.load(id).and_then(|generation| generation.reader(Space::Memory)).expect("a reader"))
        };
        let [values, references] = in_turns(ROUNDS, 1, || open(deep.id()), || open(flat.id()));
        report_percentiles(&format!("restore_depth_{depth}/open"), "ns", &values, &references, [Goal::None; 2]);
    }
    collections();
}

fn collections() {
    let stores = [(2500, Compaction::WhenDue), (1, Compaction::Never)].map(|(depth, compaction)| {
        let directory = tempfile::tempdir().expect("a directory");
        let store = LocalStore::open(directory.path()).expect("a store");
        let root = lineage(&store, depth, compaction).id();
        store.collect(&[root]).expect("collected");
        note(&format!("of a lineage of {depth}, {} generations are there", store.list().expect("listed").len()));
        (directory, store, root)
    });
    let [deep, flat] = stores.each_ref().map(|(_, store, root)| {
        move || time(|| assert!(store.collect(&[*root]).expect("collected").is_empty(), "all of it is needed"))
    });
    let [values, references] = in_turns(ROUNDS, 1, deep, flat);
    report_percentiles("collect_2500", "ns", &values, &references, [Goal::AtMost(1.1), Goal::None]);
}

/// Whether a lineage is kept short.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compaction {
    Never,
    WhenDue,
}

/// A lineage whose last generation has the same memory whatever its depth: each but the first has written some pages
/// here and there.
fn lineage(store: &LocalStore, depth: u32, compaction: Compaction) -> Generation {
    let memory: Vec<u8> =
        (0..PAGES as usize * PAGE_BYTES).map(|at| u8::try_from(at % 251).expect("small") + 1).collect();
    let mut last: Option<Generation> = None;
    for number in 0..depth {
        let written: Vec<_> = match number {
            0 => vec![PageRange::new(0, PAGES)],
            _ => {
                let spacing = PAGES / WRITTEN_RUNS;
                (0..WRITTEN_RUNS).map(|run| PageRange::new(run * spacing + number % spacing, 1)).collect()
            }
        };
        let mut pending = store.begin(last.as_ref()).expect("begun");
        pending.write_dirty(Space::Memory, &memory, &written).expect("written");
        let published = pending.publish(b"").expect("published");
        let compacted = match compaction {
            Compaction::WhenDue => store.compact_if_due(&published, &[]).expect("compacted"),
            Compaction::Never => None,
        };
        last = Some(compacted.map_or(published, |done| done.generation));
    }
    last.expect("at least one")
}

/// Every page once, at random.
fn order() -> Vec<PageIndex> {
    let mut order: Vec<_> = (0..PAGES).map(PageIndex).collect();
    let mut random = 1u64;
    for position in (1..order.len()).rev() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = usize::try_from(random >> 33).expect("31 bits") % (position + 1);
        order.swap(position, other);
    }
    order
}

/// 64 MiB.
const PAGES: u32 = 1 << 14;
const WRITTEN_RUNS: u32 = 64;
const ROUNDS: usize = 40;
