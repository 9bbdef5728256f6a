//! Power is lost, and the disk fails, at every single change that an operation makes.

use std::{path::PathBuf, sync::Arc};

use nix::errno::Errno;

use super::*;
use crate::{
    disk::faulty::{Bytes, Fault, FaultyDisk, Names},
    page::{PAGE_BYTES, PageIndex, PageRange},
    space::Space,
    temp_dir::TEMP_PREFIX,
};

const PAGES: usize = 4;

/// What a generation has to be: its memory, and a byte that its blob and metadata are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Contents {
    memory: Vec<u8>,
    mark: u8,
}

/// A store on a disk that fails, and the generations that were published before it did.
struct Scene {
    dir: tempfile::TempDir,
    disk: Arc<FaultyDisk>,
    store: LocalStore,
    roots: Vec<(GenerationId, Contents)>,
    /// What may be there or not, but not otherwise.
    others: Vec<(GenerationId, Contents)>,
}

/// What it has published when it returns is a root from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Pause,
    Compaction,
    Collection,
    Sidecar,
}

impl Scene {
    /// A lineage of three, of which the first is not needed by the last, and a fork of the second.
    fn new(compression: Compression) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Arc::new(FaultyDisk::new(dir.path()));
        let store = LocalStore::on(Arc::clone(&disk) as Arc<dyn Disk>, dir.path().to_owned()).expect("a store");
        let store = store.with_compression(compression);
        let mut scene = Self { dir, disk, store, roots: Vec::new(), others: Vec::new() };
        let mut last = None;
        for (mark, dirty) in [(1, 0..4), (2, 1..3), (3, 0..4), (4, 1..2)] {
            let published = scene.publish(last.take().as_ref(), mark, dirty).expect("no fault yet");
            last = Some(published.0);
            scene.roots.push((last.as_ref().expect("just published").id(), published.1));
        }
        scene.others = scene.roots.drain(..2).collect();
        scene
    }

    fn publish(
        &self,
        parent: Option<&Generation>,
        mark: u8,
        dirty: std::ops::Range<usize>,
    ) -> Result<(Generation, Contents)> {
        let mut memory = parent.map_or_else(|| vec![0; PAGES * PAGE_BYTES], read);
        memory[dirty.start * PAGE_BYTES..dirty.end * PAGE_BYTES].fill(mark);
        let range =
            PageRange::new(u32::try_from(dirty.start).expect("small"), u32::try_from(dirty.len()).expect("small"));
        let mut pending = self.store.begin(parent)?;
        pending.write_dirty(Space::Memory, &memory, &[range])?;
        pending.write_blob("state", &[mark; 100])?;
        Ok((pending.publish(&[mark])?, Contents { memory, mark }))
    }

    fn parent(&self) -> Generation {
        self.store.load(self.roots[1].0).expect("the last one loads")
    }
}

/// Every way that this build has.
const COMPRESSIONS: &[Compression] = &[
    Compression::None,
    #[cfg(feature = "lz4")]
    Compression::Lz4,
    #[cfg(feature = "zstd")]
    Compression::Zstd,
];

impl Operation {
    const ALL: [Self; 4] = [Self::Pause, Self::Compaction, Self::Collection, Self::Sidecar];

    fn run(self, scene: &mut Scene) -> Result<()> {
        match self {
            Self::Pause => {
                let (generation, contents) = scene.publish(Some(&scene.parent()), 5, 2..4)?;
                scene.roots.push((generation.id(), contents));
            }
            Self::Compaction => {
                let parent = scene.parent();
                let policy = CompactPolicy { live_percent_min: 100, ..CompactPolicy::default() };
                let compacted = scene.store.compact(&parent, policy)?;
                assert_eq!(compacted.folded, [scene.roots[0].0]);
                scene.roots.push((compacted.generation.id(), contents(&parent)));
            }
            Self::Collection => {
                let roots: Vec<_> = scene.roots.iter().map(|(id, _)| *id).collect();
                assert_eq!(scene.store.collect(&roots)?.len(), 2);
            }
            Self::Sidecar => {
                let hint = scene.store.sidecar(scene.roots[1].0, "hint")?;
                hint.write(&[6; 100])?;
                hint.write(&[7; 200])?;
            }
        }
        Ok(())
    }
}

fn read(generation: &Generation) -> Vec<u8> {
    let reader = generation.reader(Space::Memory).expect("a reader");
    let mut memory = vec![0; reader.index().page_count() as usize * PAGE_BYTES];
    reader.read_at(PageIndex(0), &mut memory).expect("every page is as it was written");
    memory
}

fn contents(generation: &Generation) -> Contents {
    let mark = generation.metadata()[0];
    assert_eq!(generation.blob("state").expect("the blob is as it was written"), [mark; 100]);
    Contents { memory: read(generation), mark }
}

/// Every root is whole, and so is every other generation that can be seen, or it is refused for one that is gone.
fn check(store: &LocalStore, scene: &Scene, context: &str) {
    let listed = store.list().expect("listed");
    for (id, expected) in &scene.roots {
        let found = contents(&store.load(*id).unwrap_or_else(|error| panic!("{context}: {error}")));
        assert!(found == *expected, "{context}: {id}");
        let hint = store.sidecar(*id, "hint").and_then(|hint| hint.read(1000)).expect("read");
        assert!(hint.is_none_or(|hint| hint == [6; 100] || hint == [7; 200]), "{context}: it is whole");
    }
    for id in listed.iter().filter(|id| scene.roots.iter().all(|(root, _)| root != *id)) {
        match store.load(*id) {
            Ok(generation) => {
                let found = contents(&generation);
                let known = scene.others.iter().find(|(other, _)| other == id);
                // What was being published is there as a whole, if it is there.
                assert!(known.map_or(found.mark > 3, |(_, expected)| found == *expected), "{context}: {id}");
            }
            Err(Error::Corrupt { generation, .. }) if !listed.contains(&generation) => {}
            Err(error) => panic!("{context}: {error:?}"),
        }
    }
}

fn temporary(store: &LocalStore) -> Vec<String> {
    let names = store.shared.root.list(store.root()).expect("listed");
    names.into_iter().filter(|name| name.starts_with(TEMP_PREFIX)).collect()
}

fn reopen(scene: &Scene, names: Names, bytes: Bytes) -> (tempfile::TempDir, LocalStore) {
    let dir = tempfile::tempdir().expect("a directory");
    scene.disk.remains(dir.path(), names, bytes);
    let store = LocalStore::open(PathBuf::from(dir.path())).expect("opens after a crash");
    (dir, store)
}

/// Runs an operation again and again, with the fault one change later each time, until none comes.
fn at_every_change(fault: Fault, mut check: impl FnMut(&mut Scene, Operation, Result<()>, String)) {
    let ways = COMPRESSIONS.iter().flat_map(|compression| Operation::ALL.map(|operation| (*compression, operation)));
    for (compression, operation) in ways {
        for at in 0.. {
            let mut scene = Scene::new(compression);
            scene.disk.arm(at, fault);
            let result = operation.run(&mut scene);
            if !scene.disk.has_struck() {
                result.expect("nothing went wrong");
                assert!(at > 5, "{operation:?} made only {at} changes");
                break;
            }
            let context = format!("{compression:?}, {operation:?}, {fault:?} at change {at}");
            check(&mut scene, operation, result, context);
        }
    }
}

#[test]
fn power_lost_at_any_change_loses_nothing_that_was_published() {
    at_every_change(Fault::PowerLoss, |scene, _, result, context| {
        assert!(result.is_err(), "{context}: it cannot have succeeded");
        for names in [Names::Lost, Names::Kept, Names::LostAtRoot] {
            for bytes in [Bytes::Lost, Bytes::Torn, Bytes::Zeroed, Bytes::Kept] {
                let context = format!("{context}, names {names:?}, bytes {bytes:?}");
                let (_dir, store) = reopen(scene, names, bytes);
                check(&store, scene, &context);
                assert_eq!(temporary(&store), [""; 0], "{context}");
                let roots: Vec<_> = scene.roots.iter().map(|(id, _)| *id).collect();
                store.collect(&roots).expect("collected");
                check(&store, scene, &context);
            }
        }
    });
}

#[test]
fn what_was_published_is_there_after_power_is_lost() {
    let mut scene = Scene::new(Compression::None);
    for operation in Operation::ALL {
        operation.run(&mut scene).expect("no fault");
        for names in [Names::Lost, Names::Kept, Names::LostAtRoot] {
            let (_dir, store) = reopen(&scene, names, Bytes::Lost);
            check(&store, &scene, "afterwards");
        }
    }
}

#[test]
fn a_disk_that_fails_at_any_change_is_reported_and_leaves_no_trace() {
    for errno in [Errno::ENOSPC, Errno::EIO] {
        at_every_change(Fault::Error(errno), |scene, operation, result, context| {
            let error = result.expect_err("the caller has to know");
            assert_eq!(error.is_no_space(), errno == Errno::ENOSPC, "{context}: {error:?}");
            assert!(std::error::Error::source(&error).is_some(), "{context}: {error:?}");
            check(&scene.store, scene, &context);
            if operation != Operation::Collection {
                assert_eq!(temporary(&scene.store), [""; 0], "{context}");
                assert_eq!(scene.store.list().expect("listed").len(), 4, "{context}");
                let names = scene.store.shared.root.list(&scene.store.shared.root.dir(scene.roots[1].0));
                assert!(names.expect("listed").iter().all(|name| !name.ends_with(".part")), "{context}");
                operation.run(scene).expect("and can try again");
            }
            let roots: Vec<_> = scene.roots.iter().map(|(id, _)| *id).collect();
            scene.store.collect(&roots).expect("collected");
            check(&scene.store, scene, &context);
            assert_eq!(temporary(&scene.store), [""; 0], "{context}");
            assert_eq!(scene.store.list().expect("listed").len(), scene.roots.len(), "{context}");
            assert!(scene.dir.path().is_dir());
        });
    }
}

#[test]
fn the_directories_above_a_new_store_are_durable_before_anything_is_published() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Arc::new(FaultyDisk::new(dir.path()));
    let below = ["data", "of", "wrenn"].iter().collect::<PathBuf>();
    let store = LocalStore::open_on(Arc::clone(&disk) as Arc<dyn Disk>, dir.path().join(&below)).expect("a store");
    let published = store.begin(None).expect("begun").publish(b"").expect("published").id();
    let after = tempfile::tempdir().expect("a directory");
    disk.remains(after.path(), Names::Lost, Bytes::Lost);
    let store = LocalStore::open(after.path().join(&below)).expect("opens after a crash");
    assert_eq!(store.list().expect("listed"), [published]);
}

/// The tests above mean something: a disk that forgets what was not synced is noticed.
#[test]
fn a_torn_generation_is_refused_by_name() {
    let scene = Scene::new(Compression::None);
    let id = scene.roots[0].0;
    for name in ["manifest", "memory.header", "memory.data", "state.blob"] {
        let (_dir, store) = reopen(&scene, Names::Lost, Bytes::Lost);
        let path = store.shared.root.dir(id).join(name);
        let bytes = std::fs::read(&path).expect("read");
        for torn in [Vec::new(), bytes[..bytes.len() / 2].to_vec(), vec![0; bytes.len()]] {
            std::fs::write(&path, torn).expect("written");
            let error = store.load(id).and_then(|generation| {
                generation.reader(Space::Memory)?.read_at(PageIndex(0), &mut [0; PAGES * PAGE_BYTES])?;
                generation.blob("state")
            });
            let error = error.expect_err("refused").to_string();
            assert!(error.starts_with(&format!("{name} of generation {id}: ")), "{error}");
        }
    }
}
