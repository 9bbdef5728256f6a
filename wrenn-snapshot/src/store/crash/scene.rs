//! A store on a disk that fails, and what is done to it.

use std::{ops::Range, sync::Arc};

use crate::{
    compact::CompactPolicy,
    compression::Compression,
    disk::{Disk, faulty::FaultyDisk},
    error::{Error, Result},
    generation::Generation,
    hold::held::HeldPages,
    id::GenerationId,
    page::{PageIndex, PageRange, bytes_of},
    space::Space,
    store::LocalStore,
    temp_dir::TEMP_PREFIX,
};

pub(super) const PAGES: u32 = 4;
const DRIVE_PAGES: u32 = 2;

/// What a generation has to be: its memory, its drive, and a byte that its blob and metadata are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    memory: Vec<u8>,
    drive: Vec<u8>,
    mark: u8,
}

/// A store on a disk that fails, and the generations that were published before it did.
pub(super) struct Scene {
    pub(super) dir: tempfile::TempDir,
    pub(super) disk: Arc<FaultyDisk>,
    pub(super) store: LocalStore,
    pub(super) roots: Vec<(GenerationId, Contents)>,
    /// What may be there or not, but not otherwise.
    others: Vec<(GenerationId, Contents)>,
}

/// What it has published when it returns is a root from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Memory in rounds, the last of which is held, a drive and a blob.
    Pause,
    Compaction,
    Collection,
    Sidecar,
    /// Of a store in which a crash has left something.
    Opening,
}

impl Scene {
    /// A lineage of three, of which the first is not needed by the last, and a fork of the second.
    pub(super) fn new(compression: Compression) -> Self {
        let dir = directory();
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

    fn publish(&self, parent: Option<&Generation>, mark: u8, dirty: Range<u32>) -> Result<(Generation, Contents)> {
        let mut memory = match parent {
            Some(parent) => read(parent, Space::Memory)?,
            None => vec![0; bytes_of(PAGES)],
        };
        let dirty = PageRange::new(dirty.start, dirty.end - dirty.start);
        let mut pending = self.store.begin(parent)?;
        let mut writer = pending.space_writer(Space::Memory)?;
        if dirty.count > 1 {
            // A round that the next ones replace.
            memory[bytes_of(dirty.start.0)..][..bytes_of(dirty.count)].fill(0xee);
            writer.add_dirty(&memory, &[dirty])?;
        }
        memory[bytes_of(dirty.start.0)..][..bytes_of(dirty.count)].fill(mark);
        writer.add_dirty(&memory, &[PageRange { count: 1, ..dirty }])?;
        let rest = PageRange::new(dirty.start.0 + 1, dirty.count - 1);
        if rest.count > 0 {
            writer.add_held(&HeldPages::of(memory.clone(), vec![rest]))?;
        }
        pending.seal(writer)?;
        let drive = vec![mark; bytes_of(DRIVE_PAGES)];
        pending.write_dirty(Space::Drive, &drive, &[PageRange::new(0, DRIVE_PAGES)])?;
        pending.write_blob("state", &[mark; 100])?;
        Ok((pending.publish(&[mark])?, Contents { memory, drive, mark }))
    }

    fn parent(&self) -> Result<Generation> {
        self.store.load(self.roots[1].0)
    }

    pub(super) fn root_ids(&self) -> Vec<GenerationId> {
        self.roots.iter().map(|(id, _)| *id).collect()
    }

    /// What was begun and not finished.
    pub(super) fn temporary(store: &LocalStore) -> Vec<String> {
        let root = &store.shared.root;
        let names = root.list(&root.path).expect("listed");
        names.into_iter().filter(|name| name.starts_with(TEMP_PREFIX)).collect()
    }

    /// Every root is whole, and so is every other generation that can be seen, or it is refused for one that is gone.
    pub(super) fn check(&self, store: &LocalStore, context: &str) {
        let listed = store.list().expect("listed");
        for (id, expected) in &self.roots {
            let found = contents(&store.load(*id).unwrap_or_else(|error| panic!("{context}: {error}")));
            assert!(found == *expected, "{context}: {id}");
            let hint = store.sidecar(*id, "hint").and_then(|hint| hint.read(1000)).expect("read");
            assert!(hint.is_none_or(|hint| hint == [6; 100] || hint == [7; 200]), "{context}: it is whole");
        }
        for id in listed.iter().filter(|id| self.roots.iter().all(|(root, _)| root != *id)) {
            match store.load(*id) {
                Ok(generation) => {
                    let found = contents(&generation);
                    let known = self.others.iter().find(|(other, _)| other == id);
                    // What was being published is there as a whole, if it is there.
                    assert!(known.map_or(found.mark > 3, |(_, expected)| found == *expected), "{context}: {id}");
                }
                Err(Error::Corrupt { generation, .. }) if !listed.contains(&generation) => {}
                Err(error) => panic!("{context}: {error:?}"),
            }
        }
    }
}

impl Operation {
    pub(super) const ALL: [Self; 5] = [Self::Pause, Self::Compaction, Self::Collection, Self::Sidecar, Self::Opening];

    /// Whether the data files that it writes may be compressed.
    pub(super) fn writes_pages(self) -> bool {
        matches!(self, Self::Pause | Self::Compaction)
    }

    /// Whether all that it has done is undone when it fails.
    pub(super) fn is_undone(self) -> bool {
        !matches!(self, Self::Collection | Self::Opening)
    }

    /// What has to have happened before.
    pub(super) fn prepare(self, scene: &Scene) {
        if self == Self::Opening {
            let path = |name: &str| scene.dir.path().join(name);
            let begun = path(&format!("{TEMP_PREFIX}{}", GenerationId::random()));
            scene.disk.create_dir(&begun).expect("made");
            scene.disk.create_file(&begun.join("memory.data")).expect("made");
            // A collection that got as far as this.
            let doomed = scene.others[0].0;
            let removed = path(&format!("{TEMP_PREFIX}removed-{doomed}"));
            scene.disk.rename(&path(&doomed.to_string()), &removed).expect("renamed");
        }
    }

    pub(super) fn run(self, scene: &mut Scene) -> Result<()> {
        match self {
            Self::Pause => {
                let (generation, contents) = scene.publish(Some(&scene.parent()?), 5, 2..4)?;
                scene.roots.push((generation.id(), contents));
            }
            Self::Compaction => {
                let parent = scene.parent()?;
                let policy = CompactPolicy { live_percent_min: 100, ..CompactPolicy::default() };
                let compacted = scene.store.compact(&parent, policy)?;
                assert_eq!(compacted.folded, [scene.roots[0].0]);
                let contents = scene.roots[1].1.clone();
                scene.roots.push((compacted.generation.id(), contents));
            }
            Self::Collection => assert_eq!(scene.store.collect(&scene.root_ids())?.len(), 2),
            Self::Sidecar => {
                let hint = scene.store.sidecar(scene.roots[1].0, "hint")?;
                hint.write(&[6; 100])?;
                hint.write(&[7; 200])?;
            }
            Self::Opening => {
                let disk = Arc::clone(&scene.disk) as Arc<dyn Disk>;
                drop(LocalStore::on(disk, scene.dir.path().to_owned())?);
            }
        }
        Ok(())
    }
}

fn read(generation: &Generation, space: Space) -> Result<Vec<u8>> {
    let reader = generation.reader(space)?;
    let mut bytes = vec![0; bytes_of(reader.index().page_count())];
    reader.read_at(PageIndex(0), &mut bytes)?;
    Ok(bytes)
}

fn contents(generation: &Generation) -> Contents {
    let mark = generation.metadata()[0];
    assert_eq!(generation.blob("state").expect("the blob is as it was written"), [mark; 100]);
    let read = |space| read(generation, space).expect("every page is as it was written");
    Contents { memory: read(Space::Memory), drive: read(Space::Drive), mark }
}

/// A directory in memory where there is one: thousands of stores are opened, and each is synced.
pub(super) fn directory() -> tempfile::TempDir {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    in_memory.or_else(|_| tempfile::tempdir()).expect("a directory")
}
