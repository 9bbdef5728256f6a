//! Whatever breaks, earlier generations are whole, and what is damaged is refused by name.

use std::{
    fs,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::mount::{MntFlags, MsFlags};
use wrenn_snapshot::{
    Error, Generation, GenerationId, LocalStore, PAGE_BYTES, PageIndex, PageRange, PageSource, Space,
};

fn open() -> (tempfile::TempDir, LocalStore) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path().join("store")).expect("a store");
    (dir, store)
}

fn publish(store: &LocalStore, parent: Option<&Generation>, value: u8, pages: &[PageRange]) -> Generation {
    let mut pending = store.begin(parent).expect("begun");
    pending.write_dirty(Space::Memory, &[value; 4 * PAGE_BYTES], pages).expect("written");
    pending.write_blob("state", &[value; 100]).expect("written");
    pending.publish(&[value]).expect("published")
}

const ALL: [PageRange; 1] = [PageRange { start: PageIndex(0), count: 4 }];

fn file(store: &LocalStore, id: GenerationId, name: &str) -> PathBuf {
    store.root().join(id.to_string()).join(name)
}

fn flip(path: &Path, byte: usize) {
    let mut bytes = fs::read(path).expect("read");
    bytes[byte] ^= 0x10;
    fs::write(path, bytes).expect("written");
}

fn names(store: &LocalStore) -> Vec<String> {
    let entries = fs::read_dir(store.root()).expect("listed");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
}

#[test]
fn what_a_crash_left_is_swept_and_nothing_else() {
    let (_dir, store) = open();
    let kept = publish(&store, None, 1, &ALL);
    let torn = store.root().join(format!("tmp-{}", GenerationId::random()));
    fs::create_dir(&torn).expect("made");
    fs::write(torn.join("memory.data"), [1; 100]).expect("written");
    let mut in_flight = store.begin(Some(&kept)).expect("begun");
    in_flight.write_dirty(Space::Memory, &[2; 4 * PAGE_BYTES], &ALL).expect("written");

    let again = LocalStore::open(store.root()).expect("opens again");
    assert!(!torn.exists());
    assert_eq!(again.list().expect("listed"), [kept.id()]);
    in_flight.publish(b"").expect("the sweep left it alone");
    assert_eq!(again.list().expect("listed").len(), 2);
}

#[test]
fn a_pending_generation_that_is_dropped_leaves_nothing() {
    let (_dir, store) = open();
    let first = publish(&store, None, 1, &ALL);
    let mut pending = store.begin(Some(&first)).expect("begun");
    pending.write_dirty(Space::Memory, &[2; 4 * PAGE_BYTES], &ALL).expect("written");
    assert_eq!(names(&store).len(), 2);
    drop(pending);
    assert_eq!(names(&store), [first.id().to_string()]);
}

#[test]
fn a_failed_write_can_be_tried_again() {
    let (_dir, store) = open();
    let mut pending = store.begin(None).expect("begun");
    let outside = [PageRange::new(3, 2)];
    assert!(matches!(pending.write_dirty(Space::Memory, &[1; 4 * PAGE_BYTES], &outside), Err(Error::Invalid(_))));
    pending.write_dirty(Space::Memory, &[1; 4 * PAGE_BYTES], &ALL).expect("written");
    assert!(matches!(pending.write_dirty(Space::Memory, &[1; 4 * PAGE_BYTES], &ALL), Err(Error::Invalid(_))));
    let mut blob = pending.blob_writer("state").expect("a writer");
    blob.write_all(b"half of").expect("written");
    drop(blob);
    pending.write_blob("state", b"whole").expect("written");
    for name in ["state", "../state", ""] {
        assert!(matches!(pending.write_blob(name, b""), Err(Error::Invalid(_))), "{name}");
    }
    assert!(matches!(pending.publish(&vec![0; (1 << 20) + 1]), Err(Error::Invalid(_))));
    assert_eq!(names(&store), [""; 0]);
}

#[test]
fn damage_is_refused_by_name() {
    for name in ["manifest", "memory.header", "memory.data", "state.blob"] {
        for change in ["missing", "shorter", "longer"] {
            let (_dir, store) = open();
            let id = publish(&store, None, 1, &ALL).id();
            let path = file(&store, id, name);
            let mut bytes = fs::read(&path).expect("read");
            match change {
                "missing" => fs::remove_file(&path).expect("removed"),
                "shorter" => fs::write(&path, &bytes[..bytes.len() - 1]).expect("written"),
                _ => {
                    bytes.push(0);
                    fs::write(&path, bytes).expect("written");
                }
            }
            let error = store.load(id).expect_err("refused");
            assert!(matches!(error, Error::Corrupt { .. }), "{name} {change}: {error}");
            assert!(error.to_string().starts_with(&format!("{name} of generation {id}: ")), "{change}: {error}");
        }
    }
}

/// Loads a generation and reads all of it.
fn read_all(store: &LocalStore, id: GenerationId) -> wrenn_snapshot::Result<()> {
    let generation = store.load(id)?;
    generation.reader(Space::Memory)?.read_at(PageIndex(0), &mut [0; 4 * PAGE_BYTES])?;
    generation.blob("state").map(drop)
}

#[test]
fn every_flipped_bit_of_every_file_is_found_and_its_file_is_named() {
    let (_dir, store) = open();
    let first = publish(&store, None, 1, &ALL);
    let id = publish(&store, Some(&first), 2, &[PageRange::new(1, 1)]).id();
    drop(first);
    for name in ["manifest", "memory.header", "memory.data", "state.blob"] {
        let path = file(&store, id, name);
        let file = fs::File::options().write(true).open(&path).expect("opened");
        for (position, byte) in (0..).zip(fs::read(&path).expect("read")) {
            for bit in 0..8 {
                file.write_all_at(&[byte ^ 1 << bit], position).expect("written");
                let error = read_all(&store, id).expect_err("refused");
                assert!(matches!(&error, Error::Corrupt { generation, .. } if *generation == id), "{error:?}");
                assert!(error.to_string().starts_with(name), "bit {bit} of byte {position}: {error}");
            }
            file.write_all_at(&[byte], position).expect("written");
        }
    }
    read_all(&store, id).expect("whole again");
}

#[test]
fn a_flipped_bit_of_a_page_or_blob_is_found_when_it_is_read() {
    let (_dir, store) = open();
    let generation = publish(&store, None, 1, &ALL);
    let id = generation.id();
    flip(&file(&store, id, "memory.data"), 2 * PAGE_BYTES + 17);
    flip(&file(&store, id, "state.blob"), 5);
    let reader = store.load(id).expect("loads").reader(Space::Memory).expect("a reader");
    let mut page = vec![0; PAGE_BYTES];
    for intact in [0, 1, 3] {
        reader.read_at(PageIndex(intact), &mut page).expect("an intact page is read");
    }
    let error = reader.read_at(PageIndex(2), &mut page).expect_err("refused");
    assert_eq!(error.to_string(), format!("memory.data of generation {id}: checksum mismatch in stored page 2"));
    assert!(reader.run(PageIndex(2), 1, &mut page).is_err());
    let copy = tempfile::NamedTempFile::new().expect("a file");
    assert!(reader.copy_into(copy.as_file(), copy.path()).is_err());
    let error = generation.blob("state").expect_err("refused");
    assert_eq!(error.to_string(), format!("state.blob of generation {id}: checksum mismatch in the file"));
}

#[test]
fn a_file_that_is_cut_off_while_it_is_read_is_an_error() {
    let (_dir, store) = open();
    let generation = publish(&store, None, 1, &ALL);
    let reader = generation.reader(Space::Memory).expect("a reader");
    let data = fs::File::options().write(true).open(file(&store, generation.id(), "memory.data")).expect("opened");
    data.set_len(PAGE_BYTES as u64 * 3 / 2).expect("cut off");
    let mut page = vec![0; PAGE_BYTES];
    reader.read_at(PageIndex(0), &mut page).expect("the first page is there");
    for cut in [1, 2] {
        let error = reader.read_at(PageIndex(cut), &mut page).expect_err("refused");
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_missing_ancestor_is_refused_by_name_before_anything_is_served() {
    let (_dir, store) = open();
    let first = publish(&store, None, 1, &ALL);
    let second = publish(&store, Some(&first), 2, &[PageRange::new(1, 1)]).id();
    let first = first.id();
    fs::remove_dir_all(store.root().join(first.to_string())).expect("removed");
    let store = LocalStore::open(store.root()).expect("opens again");
    let error = store.load(second).expect_err("refused");
    assert_eq!(error.to_string(), format!("memory.data of generation {first}: file is missing"));
    assert!(matches!(store.load(first), Err(Error::NotFound(id)) if id == first));
}

#[test]
#[ignore = "the other process of the test below, which starts it"]
fn endless_publisher() {
    let Some(root) = std::env::var_os("STORE_ROOT") else { return };
    let store = LocalStore::open(root).expect("a store");
    let mut last: Option<Generation> = None;
    for value in 1.. {
        let changed = [PageRange::new(value % 4, 1)];
        let value = u8::try_from(value % 250).expect("a byte") + 1;
        let next = publish(&store, last.as_ref(), value, if last.is_some() { &changed } else { &ALL });
        let id = next.id();
        last = Some(next);
        let root = store.root().join("root");
        fs::write(root.with_extension("new"), id.to_string()).expect("written");
        fs::rename(root.with_extension("new"), root).expect("renamed");
        store.collect(&[id]).expect("collected");
    }
}

#[test]
fn a_kill_at_any_moment_leaves_whole_files_and_a_readable_root() {
    let (_dir, store) = open();
    let mut checked = 0;
    for round in 0..12 {
        let mut publisher = Command::new(std::env::current_exe().expect("the test's own name"))
            .args(["--exact", "endless_publisher", "--ignored"])
            .env("STORE_ROOT", store.root())
            .stdout(Stdio::null())
            .spawn()
            .expect("the test runs itself");
        // Not a wait for something to have happened: wherever the kill lands is where the promise is tested.
        std::thread::sleep(Duration::from_millis(20 + 7 * round));
        publisher.kill().expect("killed");
        publisher.wait().expect("dead");
        let store = LocalStore::open(store.root()).expect("opens again");
        assert!(names(&store).iter().all(|name| !name.starts_with("tmp-")), "{:?}", names(&store));
        for id in store.list().expect("listed") {
            match store.load(id) {
                Ok(generation) => {
                    assert_eq!(generation.blob("state").expect("a blob"), [generation.metadata()[0]; 100]);
                }
                // It was given up, and what it needs is gone.
                Err(Error::Corrupt { generation, .. }) if generation != id => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        let Ok(root) = fs::read_to_string(store.root().join("root")) else { continue };
        let generation = store.load(root.parse().expect("an id")).expect("the root is there");
        let mut read = vec![0; 4 * PAGE_BYTES];
        generation.reader(Space::Memory).expect("a reader").read_at(PageIndex(0), &mut read).expect("read");
        let value = generation.metadata()[0];
        assert!(read.chunks(PAGE_BYTES).any(|page| page == [value; PAGE_BYTES]), "its own page is there");
        checked += 1;
    }
    assert!(checked > 0, "no round got as far as a generation");
}

/// A file system of 256 KiB, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(test: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let none: Option<&str> = None;
        match nix::mount::mount(none, dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=256k")) {
            Ok(()) => Some(Self(dir)),
            Err(errno) => {
                writeln!(std::io::stderr(), "skipped: {test}: cannot mount a small disk: {errno}").expect("open");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_is_recognised_and_earlier_generations_stay() {
    let Some(disk) = SmallDisk::mount("a_full_disk_is_recognised_and_earlier_generations_stay") else { return };
    let store = LocalStore::open(disk.0.path().join("store")).expect("a store");
    let first = publish(&store, None, 1, &ALL);
    let memory = vec![2; 128 * PAGE_BYTES];
    let mut pending = store.begin(Some(&first)).expect("begun");
    let error = pending.write_dirty(Space::Memory, &memory, &[PageRange::new(0, 128)]).expect_err("too much");
    assert!(error.is_no_space(), "{error:?}");
    assert!(pending.write_blob("state", &memory).expect_err("too much").is_no_space());
    drop(pending);

    let store = LocalStore::open(store.root()).expect("opens again");
    assert_eq!(store.list().expect("listed"), [first.id()]);
    let mut read = vec![0; 4 * PAGE_BYTES];
    store
        .load(first.id())
        .expect("loads")
        .reader(Space::Memory)
        .expect("a reader")
        .read_at(PageIndex(0), &mut read)
        .expect("read");
    assert_eq!(read, vec![1; 4 * PAGE_BYTES]);
    publish(&store, Some(&first), 3, &ALL);
}
