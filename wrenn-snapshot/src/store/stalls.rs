//! A file that is slow to open holds up those who need it, and nobody else.

use std::{sync::mpsc, time::Duration};

use super::*;
use crate::{
    disk::held_up::HeldUpDisk,
    page::{PAGE_BYTES, PageIndex, PageRange},
    space::Space,
};

struct Scene {
    _dir: tempfile::TempDir,
    disk: Arc<HeldUpDisk>,
    store: LocalStore,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Arc::new(HeldUpDisk::default());
        let store = LocalStore::on(Arc::clone(&disk) as Arc<dyn Disk>, dir.path().to_owned()).expect("a store");
        Self { _dir: dir, disk, store }
    }

    fn publish(&self) -> GenerationId {
        let mut pending = self.store.begin(None).expect("begun");
        pending.write_dirty(Space::Memory, &[1; PAGE_BYTES], &[PageRange::new(0, 1)]).expect("written");
        pending.publish(b"").expect("published").id()
    }

    /// Does something while somebody else waits to open a file of a generation, and requires that it be done by then.
    fn meanwhile<T: Send + 'static>(
        &self,
        file: (GenerationId, &str),
        held_up: impl FnOnce(LocalStore) + Send + 'static,
        work: impl FnOnce(LocalStore) -> T + Send + 'static,
    ) -> T {
        self.disk.hold_up(self.store.shared.root.dir(file.0).join(file.1));
        let store = self.store.clone();
        let waiting = std::thread::spawn(move || held_up(store));
        self.disk.wait_for_somebody();
        let (done, ended) = mpsc::channel();
        let store = self.store.clone();
        std::thread::spawn(move || done.send(work(store)));
        let result = ended.recv_timeout(Duration::from_secs(10));
        self.disk.let_go();
        waiting.join().expect("it does not panic");
        result.expect("nobody waits for a file that it does not need")
    }
}

fn read(store: &LocalStore, id: GenerationId) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    let reader = store.load(id).expect("loads").reader(Space::Memory).expect("a reader");
    reader.read_at(PageIndex(0), &mut page).expect("read");
    page
}

#[test]
fn a_collection_that_is_slow_to_read_a_root_holds_up_nobody() {
    let scene = Scene::new();
    let (slow, other) = (scene.publish(), scene.publish());
    let collects = move |store: LocalStore| drop(store.collect(&[slow, other]).expect("collected"));
    let page = scene.meanwhile((slow, "memory.header"), collects, move |store| {
        let mut pending = store.begin(None).expect("begun");
        pending.write_dirty(Space::Memory, &[1; PAGE_BYTES], &[PageRange::new(0, 1)]).expect("written");
        pending.publish(b"").expect("published");
        read(&store, other)
    });
    assert_eq!(page, [1; PAGE_BYTES]);
}

#[test]
fn a_load_that_is_slow_holds_up_no_collection() {
    let scene = Scene::new();
    let (slow, garbage) = (scene.publish(), scene.publish());
    let loads = move |store: LocalStore| drop(store.load(slow).expect("loads"));
    let collects = move |store: LocalStore| store.collect(&[]).expect("collected");
    assert_eq!(scene.meanwhile((slow, "memory.header"), loads, collects), [garbage]);
}

#[test]
fn a_data_file_that_is_slow_to_open_holds_up_no_other() {
    let scene = Scene::new();
    let (slow, other) = (scene.publish(), scene.publish());
    let opens = move |store: LocalStore| assert_eq!(read(&store, slow), [1; PAGE_BYTES]);
    let page = scene.meanwhile((slow, "memory.data"), opens, move |store| read(&store, other));
    assert_eq!(page, [1; PAGE_BYTES]);
    assert_eq!(read(&scene.store, slow), [1; PAGE_BYTES]);
}

#[test]
fn the_many_ancestors_of_a_generation_are_not_opened_one_after_another() {
    let scene = Scene::new();
    let mut last: Option<Generation> = None;
    for page in 0..64 {
        let mut pending = scene.store.begin(last.as_ref()).expect("begun");
        let memory = [1; 64 * PAGE_BYTES];
        pending.write_dirty(Space::Memory, &memory, &[PageRange::new(page, 1)]).expect("written");
        last = Some(pending.publish(b"").expect("published"));
    }
    let last = last.expect("there are some");
    let index = last.index(Space::Memory).expect("it has a memory");
    let slow = scene.store.shared.root.dir(index.generations()[0]).join("memory.header");
    scene.disk.hold_up(slow);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| last.reader(Space::Memory).expect("a reader"));
        // Two files of each, but for those that one thread has to open after the slow one.
        let are_opened = scene.disk.opens(2 * (64 - 16));
        scene.disk.let_go();
        let mut read = vec![0; 64 * PAGE_BYTES];
        reader.join().expect("it does not panic").read_at(PageIndex(0), &mut read).expect("read");
        assert!(read == [1; 64 * PAGE_BYTES], "each file is in its place");
        assert!(are_opened, "the others are, meanwhile");
    });
}
