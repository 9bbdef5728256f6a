//! Files beside a generation: whole or not there, made once, and gone with it.

use std::{
    io::{Read, Write},
    sync::{
        Barrier,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use wrenn_snapshot::{Error, Generation, LocalStore, PageRange, Sidecar, WorkingSet};

const PATIENCE: Duration = Duration::from_secs(20);

/// A test on a store in a directory, and on one in memory.
fn on_each(test: impl Fn(&LocalStore)) {
    let dir = tempfile::tempdir().expect("a directory");
    test(&LocalStore::open(dir.path()).expect("a store"));
    test(&LocalStore::in_memory().expect("a store"));
}

fn publish(store: &LocalStore) -> Generation {
    store.begin(None).expect("begun").publish(b"").expect("published")
}

fn made(sidecar: &Sidecar, bytes: &[u8]) -> Vec<u8> {
    let write = |mut file: &std::fs::File| file.write_all(bytes).map_err(Error::of_source);
    let mut read = Vec::new();
    sidecar.make(PATIENCE, write).expect("made").read_to_end(&mut read).expect("read");
    read
}

#[test]
fn what_is_written_is_read_and_replaced_as_a_whole() {
    on_each(|store| {
        let generation = publish(store);
        let sidecar = generation.sidecar("hint").expect("a handle");
        assert!(sidecar.read(100).expect("read").is_none() && sidecar.open().expect("opened").is_none());
        for bytes in [&b"a long one"[..], b"short", b""] {
            sidecar.write(bytes).expect("written");
            let again = store.sidecar(generation.id(), "hint").expect("a handle");
            assert_eq!(again.read(10).expect("read").as_deref(), Some(bytes));
        }
        assert_eq!(generation.sidecar("other").expect("a handle").read(100).expect("read"), None);
        sidecar.write(b"a long one").expect("written");
        assert!(matches!(sidecar.read(9), Err(Error::Corrupt { .. })), "it is longer than anybody reads");
        for name in ["", "manifest", "memory.header", "../x", "Hint"] {
            assert!(matches!(generation.sidecar(name), Err(Error::Invalid(_))), "{name}");
        }
    });
}

#[test]
fn of_many_who_want_it_one_makes_it() {
    on_each(|store| {
        let generation = publish(store);
        let (start, makers) = (Barrier::new(6), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..6)
                .map(|_| {
                    scope.spawn(|| {
                        let sidecar = store.sidecar(generation.id(), "cache").expect("a handle");
                        start.wait();
                        let file = sidecar.make(PATIENCE, |mut file| {
                            let number = makers.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(Duration::from_millis(20));
                            file.write_all(&[u8::try_from(number).expect("few"); 100]).map_err(Error::of_source)
                        });
                        let mut bytes = Vec::new();
                        file.expect("made").read_to_end(&mut bytes).expect("read");
                        bytes
                    })
                })
                .collect();
            for one in all {
                assert_eq!(one.join().expect("it does not panic"), [0; 100]);
            }
        });
        assert_eq!(makers.into_inner(), 1);
    });
}

#[test]
fn one_that_could_not_be_made_is_made_by_the_next() {
    on_each(|store| {
        let sidecar = publish(store).sidecar("cache").expect("a handle");
        let failed = sidecar.make(PATIENCE, |mut file| {
            file.write_all(b"half").map_err(Error::of_source)?;
            Err(Error::of_source("the other half is away"))
        });
        assert!(matches!(failed, Err(Error::Source(_))), "{failed:?}");
        assert!(sidecar.open().expect("opened").is_none());
        assert_eq!(made(&sidecar, b"whole"), b"whole");
        assert_eq!(made(&sidecar, b"another"), b"whole", "it is there");
    });
}

#[test]
fn who_waits_for_a_maker_waits_for_so_long_and_no_longer() {
    on_each(|store| {
        let generation = publish(store);
        let sidecar = generation.sidecar("cache").expect("a handle");
        let slow = sidecar.make(PATIENCE, |_| {
            let started = Instant::now();
            let other = generation.sidecar("cache").expect("a handle");
            let refused = other.make(Duration::from_millis(50), |_| Ok(()));
            assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
            assert!((Duration::from_millis(50)..PATIENCE).contains(&started.elapsed()));
            Ok(())
        });
        assert_eq!(slow.expect("made").metadata().expect("open").len(), 0);
    });
}

#[test]
fn what_a_crash_left_is_written_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let generation = publish(&store);
    let own = dir.path().join(generation.id().to_string());
    std::fs::write(own.join("cache.part"), vec![9; 1000]).expect("written");
    std::fs::write(own.join("hint.part"), vec![9; 1000]).expect("written");
    assert_eq!(made(&generation.sidecar("cache").expect("a handle"), b"new"), b"new");
    generation.sidecar("hint").expect("a handle").write(b"new").expect("written");
    assert_eq!(std::fs::read(own.join("hint")).expect("read"), b"new");
    let names = std::fs::read_dir(&own).expect("listed").count();
    assert_eq!(names, 3, "the manifest and the two");
}

#[test]
fn it_keeps_its_generation_and_goes_with_it() {
    on_each(|store| {
        let generation = publish(store);
        let id = generation.id();
        let sidecar = generation.sidecar("hint").expect("a handle");
        sidecar.write(b"read page 7 first").expect("written");
        drop(generation);
        assert_eq!(store.collect(&[]).expect("collected"), []);
        assert!(sidecar.read(100).expect("read").is_some());
        drop(sidecar);
        assert_eq!(store.collect(&[]).expect("collected"), [id]);
        assert!(matches!(store.sidecar(id, "hint"), Err(Error::NotFound(gone)) if gone == id));
        let left = store.root().exists().then(|| std::fs::read_dir(store.root()).expect("listed").count());
        assert_eq!(left.unwrap_or(0), 0);
    });
}

/// As those that are in stores today were written: past the store, under the same name.
#[test]
fn a_file_that_was_put_there_by_hand_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let generation = publish(&store);
    let mut set = WorkingSet::new();
    set.record(PageRange::new(3, 4));
    set.store(&dir.path().join(generation.id().to_string()).join("working-set")).expect("stored");
    let bytes = generation.sidecar("working-set").expect("a handle").read(WorkingSet::BYTES_MAX).expect("read");
    assert_eq!(WorkingSet::decode(&bytes.expect("it is there")), Ok(set));
}
