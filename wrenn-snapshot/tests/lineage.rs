//! A store that lives for long, against plain vectors of bytes: writes, forks, rollbacks, compactions, collections.

use std::fmt;

use proptest::prelude::*;
use wrenn_snapshot::{CompactPolicy, Compression, Generation, LocalStore, PAGE_BYTES, PageIndex, PageRange, Space};

mod seed;

const PAGES: u32 = 16;
const BRANCHES_MAX: usize = 4;

/// One step. `branch` picks one of those that are there, and `value` 0 zeroes a page.
#[derive(Clone, Debug)]
enum Step {
    Write {
        branch: prop::sample::Index,
        space: Space,
        pages: Vec<(u32, u8)>,
    },
    Fork {
        branch: prop::sample::Index,
    },
    Rollback {
        branch: prop::sample::Index,
        to: prop::sample::Index,
    },
    Forget {
        branch: prop::sample::Index,
    },
    Compact {
        branch: prop::sample::Index,
        live_percent_min: u8,
        generations_max: usize,
    },
    Collect,
    Reopen,
    /// From now on, new generations are compressed in this way.
    Compress {
        how: prop::sample::Index,
    },
}

/// Every way that this build has.
const COMPRESSIONS: &[Compression] = &[
    Compression::None,
    #[cfg(feature = "lz4")]
    Compression::Lz4,
    #[cfg(feature = "zstd")]
    Compression::Zstd,
];

fn step() -> impl Strategy<Value = Step> {
    let branch = any::<prop::sample::Index>;
    let space = prop_oneof![3 => Just(Space::Memory), 1 => Just(Space::Drive)];
    let pages = proptest::collection::btree_map(0..PAGES, 0u8..4, 0..10);
    prop_oneof![
        6 => (branch(), space, pages)
            .prop_map(|(branch, space, pages)| Step::Write { branch, space, pages: pages.into_iter().collect() }),
        2 => branch().prop_map(|branch| Step::Fork { branch }),
        1 => (branch(), branch()).prop_map(|(branch, to)| Step::Rollback { branch, to }),
        1 => branch().prop_map(|branch| Step::Forget { branch }),
        3 => (branch(), 0u8..=100, 1usize..8).prop_map(|(branch, live_percent_min, generations_max)| {
            Step::Compact { branch, live_percent_min, generations_max }
        }),
        2 => Just(Step::Collect),
        1 => Just(Step::Reopen),
        2 => branch().prop_map(|how| Step::Compress { how }),
    ]
}

/// A generation, and what it has to hold.
#[derive(Clone)]
struct Kept {
    generation: Generation,
    memory: Vec<u8>,
    drive: Option<Vec<u8>>,
    mark: u8,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.generation.id().fmt(f)
    }
}

impl Kept {
    fn write(&self, store: &LocalStore, space: Space, pages: &[(u32, u8)]) -> Self {
        let mut next = self.clone();
        let bytes = match space {
            Space::Memory => &mut next.memory,
            _ => next.drive.get_or_insert_with(|| vec![0; PAGES as usize * PAGE_BYTES]),
        };
        for (page, value) in pages {
            bytes[*page as usize * PAGE_BYTES..][..PAGE_BYTES].fill(*value);
        }
        next.mark = self.mark.wrapping_add(1);
        let dirty: Vec<_> = pages.iter().map(|(page, _)| PageRange::new(*page, 1)).collect();
        let mut pending = store.begin(Some(&self.generation)).expect("begun");
        pending.write_dirty(space, bytes, &dirty).expect("written");
        pending.write_blob("state", &[next.mark; 3]).expect("written");
        next.generation = pending.publish(&[next.mark]).expect("published");
        next
    }

    fn check(&self, generation: &Generation) {
        let mut bytes = vec![0xee; PAGES as usize * PAGE_BYTES];
        generation.reader(Space::Memory).expect("a reader").read_at(PageIndex(0), &mut bytes).expect("read");
        assert!(bytes == self.memory, "the memory of {self:?}");
        assert_eq!(generation.space(Space::Drive).is_some(), self.drive.is_some());
        if let Some(drive) = &self.drive {
            generation.reader(Space::Drive).expect("a reader").read_at(PageIndex(0), &mut bytes).expect("read");
            assert!(bytes == *drive, "the drive of {self:?}");
        }
        assert_eq!(generation.metadata(), [self.mark]);
        assert_eq!(generation.blob("state").expect("a blob"), [self.mark; 3]);
    }

    fn compact(&mut self, store: &LocalStore, policy: CompactPolicy) {
        let held = self.held();
        let done = store.compact(&self.generation, policy).expect("compacted");
        self.check(&done.generation);
        self.check(&self.generation);
        if done.folded.is_empty() {
            assert_eq!((done.generation.id(), done.copied_bytes), (self.generation.id(), 0));
            return;
        }
        // Bytes that are released may have been compressed.
        assert!(COMPRESSIONS.len() > 1 || done.copied_bytes <= done.released_bytes, "{done:?}");
        self.generation = done.generation;
        let now = self.held();
        assert!(now.iter().all(|id| !done.folded.contains(id)), "what was folded is needed no more");
        assert!(now.iter().all(|id| held.contains(id) || *id == self.generation.id()));
        let most = Space::ALL.iter().filter_map(|space| self.generation.space(*space)).map(|stats| stats.generations);
        assert!(most.max() <= Some(policy.generations_max), "{policy:?}");
    }

    fn held(&self) -> Vec<wrenn_snapshot::GenerationId> {
        let indexes = Space::ALL.iter().filter_map(|space| self.generation.index(*space));
        indexes.flat_map(|index| index.generations().to_vec()).collect()
    }
}

/// The branches, each with every generation that it keeps, the newest last.
fn run(store: &LocalStore, steps: &[Step]) {
    let memory: Vec<u8> = (0..PAGES).flat_map(|_| [7; PAGE_BYTES]).collect();
    let mut pending = store.begin(None).expect("begun");
    pending.write_dirty(Space::Memory, &memory, &[PageRange::new(0, PAGES)]).expect("written");
    pending.write_blob("state", &[0; 3]).expect("written");
    let generation = pending.publish(&[0]).expect("published");
    let mut branches = vec![vec![Kept { generation, memory, drive: None, mark: 0 }]];
    let (clones, mut store) = (store.clone(), store.clone());
    for step in steps {
        let store = &mut store;
        let count = branches.len();
        match step {
            Step::Write { branch, space, pages } => {
                let branch = &mut branches[branch.index(count)];
                let next = branch.last().expect("never empty").write(store, *space, pages);
                branch.push(next);
            }
            Step::Fork { branch } if count < BRANCHES_MAX => {
                branches.push(vec![branches[branch.index(count)].last().expect("never empty").clone()]);
            }
            Step::Rollback { branch, to } => {
                let branch = &mut branches[branch.index(count)];
                branch.truncate(to.index(branch.len()) + 1);
            }
            // All but the newest.
            Step::Forget { branch } => {
                let branch = &mut branches[branch.index(count)];
                branch.drain(..branch.len() - 1);
            }
            Step::Compact { branch, live_percent_min, generations_max } => {
                let policy = CompactPolicy { live_percent_min: *live_percent_min, generations_max: *generations_max };
                branches[branch.index(count)].last_mut().expect("never empty").compact(store, policy);
            }
            Step::Collect => collect(store, &branches),
            Step::Reopen => {
                for kept in branches.iter_mut().flatten() {
                    kept.generation = clones.load(kept.generation.id()).expect("it is kept, so it loads");
                }
            }
            Step::Compress { how } => *store = store.clone().with_compression(*how.get(COMPRESSIONS)),
            Step::Fork { .. } => {}
        }
    }
    collect(&store, &branches);
    for kept in branches.iter().flatten() {
        kept.check(&store.load(kept.generation.id()).expect("it is kept, so it loads"));
    }
}

fn collect(store: &LocalStore, branches: &[Vec<Kept>]) {
    let roots: Vec<_> = branches.iter().flatten().map(|kept| kept.generation.id()).collect();
    store.collect(&roots).expect("collected");
    let reach: Vec<_> = branches.iter().flatten().flat_map(|kept| [kept.held(), roots.clone()].concat()).collect();
    assert!(store.list().expect("listed").iter().all(|id| reach.contains(id)), "what nothing reaches is gone");
    for kept in branches.iter().flatten() {
        kept.check(&kept.generation);
    }
}

proptest! {
    #![proptest_config(seed::cases(2000))]
    #[test]
    fn every_branch_reads_as_it_was_written(steps in proptest::collection::vec(step(), 1..24)) {
        run(&LocalStore::in_memory().expect("a store"), &steps);
    }
}

#[test]
fn compaction_and_collection_free_what_is_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let memory = vec![7; PAGES as usize * PAGE_BYTES];
    let mut pending = store.begin(None).expect("begun");
    pending.write_dirty(Space::Memory, &memory, &[PageRange::new(0, PAGES)]).expect("written");
    pending.write_blob("state", &[0; 3]).expect("written");
    let generation = pending.publish(&[0]).expect("published");
    let base = Kept { generation, memory, drive: None, mark: 0 };
    let most: Vec<_> = (0..PAGES - 2).map(|page| (page, 1)).collect();
    let mut last = base.write(&store, Space::Memory, &most);
    let id = base.generation.id();
    drop(base);
    let reader = last.generation.reader(Space::Memory).expect("a reader");

    let done = store.compact(&last.generation, CompactPolicy::default()).expect("compacted");
    assert_eq!(done.folded, [id]);
    let page = PAGE_BYTES as u64;
    assert_eq!((done.copied_bytes, done.released_bytes), (2 * page, u64::from(PAGES) * page));
    assert_eq!(done.generation.parent(), Some(last.generation.id()));
    last.check(&done.generation);
    last.generation = done.generation;
    assert_eq!(store.collect(&[last.generation.id()]).expect("collected"), [id]);
    last.check(&store.load(last.generation.id()).expect("loads"));
    let mut bytes = vec![0; last.memory.len()];
    reader.read_at(PageIndex(0), &mut bytes).expect("a reader of the original goes on");
    assert!(bytes == last.memory);

    let again = store.compact(&last.generation, CompactPolicy::default()).expect("compacted");
    assert!(again.folded.is_empty(), "once is enough: {again:?}");
}

/// A page of each pause, and every so often a rollback: what a sandbox does that is paused again and again.
#[test]
fn a_lineage_of_many_pauses_keeps_a_bounded_number_of_files() {
    const PAGES: u32 = 512;
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let mut memory = vec![1; PAGES as usize * PAGE_BYTES];
    let mut last = pause(&store, None, &memory, PageRange::new(0, PAGES));
    let template = last.id();
    let (mut compactions, mut copied_bytes) = (0, 0);
    for number in 0..400u32 {
        let page = number * 37 % PAGES;
        memory[page as usize * PAGE_BYTES..][..PAGE_BYTES].fill(u8::try_from(number % 250).expect("small") + 2);
        last = pause(&store, Some(&last), &memory, PageRange::new(page, 1));
        if let Some(done) = store.compact_if_due(&last, &[template]).expect("compacted") {
            last = done.generation;
            compactions += 1;
            copied_bytes += done.copied_bytes;
            assert!(!done.folded.contains(&template), "it has the most live pages, and others keep it");
            assert!(last.space(Space::Memory).expect("a space").generations <= 32);
        }
        store.collect(&[template, last.id()]).expect("collected");
        let reader = last.reader(Space::Memory).expect("a reader");
        let mut read = vec![0; memory.len()];
        reader.read_at(PageIndex(0), &mut read).expect("read");
        assert!(read == memory, "after pause {number}");
        assert!(store.list().expect("listed").len() <= 67, "64, the template, the last, and what was compacted");
        assert!(descriptors_below(dir.path()) <= 70, "{} descriptors", descriptors_below(dir.path()));
    }
    assert!((10..20).contains(&compactions), "{compactions} compactions");
    assert!(copied_bytes < 8 * 400 * PAGE_BYTES as u64, "each page some times: {copied_bytes} bytes");
}

#[test]
fn what_is_overwritten_is_folded_once_it_is_most_of_what_is_stored_unless_others_keep_it() {
    const PAGES: u32 = 40 << 8;
    let store = LocalStore::in_memory().expect("a store");
    let memory = vec![1; PAGES as usize * PAGE_BYTES];
    let template = pause(&store, None, &memory, PageRange::new(0, PAGES));
    let first = pause(&store, Some(&template), &memory, PageRange::new(0, PAGES));
    let others = [template.id()];
    assert!(store.compact_if_due(&first, &others).expect("read").is_none(), "nothing of its own is dead");
    let second = pause(&store, Some(&first), &memory, PageRange::new(0, PAGES - 9));
    assert!(store.compact_if_due(&second, &others).expect("read").is_none(), "40 MiB are not worth it");
    let third = pause(&store, Some(&second), &memory, PageRange::new(0, PAGES - 19));
    assert!(store.compact_if_due(&third, &others).expect("read").is_some_and(|done| done.folded.len() == 2));
    let kept = [template.id(), first.id(), second.id()];
    assert!(store.compact_if_due(&third, &kept).expect("read").is_none(), "it would free nothing");
    let gone = [wrenn_snapshot::GenerationId::random()];
    assert!(store.compact_if_due(&third, &gone).expect("read").is_some());
}

/// How many files and directories below a directory are open.
fn descriptors_below(dir: &std::path::Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").expect("listed").flatten();
    open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).filter(|path| path.starts_with(dir)).count()
}

fn pause(store: &LocalStore, parent: Option<&Generation>, memory: &[u8], dirty: PageRange) -> Generation {
    let mut pending = store.begin(parent).expect("begun");
    pending.write_dirty(Space::Memory, memory, &[dirty]).expect("written");
    pending.publish(b"").expect("published")
}
