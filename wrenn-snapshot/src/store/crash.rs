//! Power is lost, and the disk fails, at every single change that an operation makes.

use std::path::PathBuf;

use nix::errno::Errno;
use scene::{Operation, PAGES, Scene, directory};

use super::*;
use crate::{
    disk::faulty::{Bytes, Fault, FaultyDisk, Names},
    page::{PageIndex, bytes_of},
    space::Space,
};

mod scene;

/// Every way that this build has.
const COMPRESSIONS: &[Compression] = &[
    Compression::None,
    #[cfg(feature = "lz4")]
    Compression::Lz4,
    #[cfg(feature = "zstd")]
    Compression::Zstd,
];

/// What may be left of what was not synced.
fn remains(seed: u64) -> [(Names, Bytes); 10] {
    [
        (Names::Lost, Bytes::Lost),
        (Names::Lost, Bytes::Kept),
        (Names::Kept, Bytes::Lost),
        (Names::Kept, Bytes::Torn),
        (Names::Kept, Bytes::Zeroed),
        (Names::LostAtRoot, Bytes::Torn),
        (Names::LostAtRoot, Bytes::Kept),
        (Names::Some(seed), Bytes::Mixed(seed)),
        (Names::Some(seed + 1), Bytes::Mixed(seed + 1)),
        (Names::Some(seed + 2), Bytes::Kept),
    ]
}

fn reopen(scene: &Scene, names: Names, bytes: Bytes) -> (tempfile::TempDir, LocalStore) {
    let dir = directory();
    scene.disk.remains(dir.path(), names, bytes);
    let store = LocalStore::open(PathBuf::from(dir.path())).expect("opens after a crash");
    (dir, store)
}

/// Whatever is left of what was not synced, the store opens, and its roots are whole.
fn check_after_power_loss(scene: &Scene, seed: usize, context: &str) {
    for (names, bytes) in remains(seed as u64) {
        let context = format!("{context}, names {names:?}, bytes {bytes:?}");
        let (_dir, store) = reopen(scene, names, bytes);
        scene.check(&store, &context);
        assert_eq!(Scene::temporary(&store), [""; 0], "{context}");
        store.collect(&scene.root_ids()).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        scene.check(&store, &context);
    }
}

/// Runs an operation again and again, with the fault one place later each time, until none comes.
fn at_every_place(
    what: &str,
    arm: impl Fn(&FaultyDisk, usize),
    mut check: impl FnMut(&mut Scene, Operation, Result<()>, usize, String),
) {
    for operation in Operation::ALL {
        let compressions = if operation.writes_pages() { COMPRESSIONS } else { &COMPRESSIONS[..1] };
        for compression in compressions {
            for at in 0.. {
                let mut scene = Scene::new(*compression);
                operation.prepare(&scene);
                arm(&scene.disk, at);
                let result = operation.run(&mut scene);
                if !scene.disk.has_struck() {
                    result.expect("nothing went wrong");
                    assert!(at > 3, "{operation:?} gave only {at} occasions");
                    break;
                }
                let context = format!("{compression:?}, {operation:?}, {what} at place {at}");
                check(&mut scene, operation, result, at, context);
            }
        }
    }
}

fn at_every_change(fault: Fault, check: impl FnMut(&mut Scene, Operation, Result<()>, usize, String)) {
    at_every_place(&format!("{fault:?}"), |disk, at| disk.arm(at, fault), check);
}

/// After something failed nothing is lost, all can be tried again, and what is left over goes.
fn check_and_try_again(scene: &mut Scene, operation: Operation, result: Result<()>, at: usize, context: &str) {
    let failed = result.is_err();
    scene.check(&scene.store, context);
    if failed && operation.is_undone() {
        assert_eq!(Scene::temporary(&scene.store), [""; 0], "{context}");
        assert_eq!(scene.store.list().expect("listed").len(), 4, "{context}");
        let names = scene.store.shared.root.list(&scene.store.shared.root.dir(scene.roots[1].0));
        assert!(names.expect("listed").iter().all(|name| !name.ends_with(".part")), "{context}");
        operation.run(scene).expect("and can try again");
    }
    scene.store.collect(&scene.root_ids()).expect("collected");
    scene.check(&scene.store, context);
    assert_eq!(Scene::temporary(&scene.store), [""; 0], "{context}");
    assert_eq!(scene.store.list().expect("listed").len(), scene.roots.len(), "{context}");
    check_after_power_loss(scene, at, context);
}

#[test]
fn power_lost_at_any_change_loses_nothing_that_was_published() {
    at_every_change(Fault::PowerLoss, |scene, _, result, at, context| {
        assert!(result.is_err(), "{context}: it cannot have succeeded");
        check_after_power_loss(scene, at, &context);
    });
}

#[test]
fn what_was_published_is_there_after_power_is_lost() {
    let mut scene = Scene::new(Compression::None);
    for (number, operation) in
        Operation::ALL.into_iter().filter(|operation| *operation != Operation::Opening).enumerate()
    {
        operation.run(&mut scene).expect("no fault");
        check_after_power_loss(&scene, number, "afterwards");
    }
}

#[test]
fn a_disk_that_fails_at_any_change_is_reported_and_leaves_no_trace() {
    for errno in [Errno::ENOSPC, Errno::EIO] {
        at_every_change(Fault::Error(errno), |scene, operation, result, at, context| {
            let error = result.expect_err("the caller has to know");
            assert_eq!(error.is_no_space(), errno == Errno::ENOSPC, "{context}: {error:?}");
            assert!(std::error::Error::source(&error).is_some(), "{context}: {error:?}");
            check_and_try_again(scene, operation, Err(error), at, &context);
        });
    }
}

/// What a failed sync had to make durable is lost, whatever a later one says.
#[test]
fn a_sync_that_fails_is_not_made_good_by_one_that_succeeds() {
    at_every_change(Fault::LostSync(Errno::EIO), |scene, operation, result, at, context| {
        check_and_try_again(scene, operation, result, at, &context);
    });
}

#[test]
fn a_write_that_is_cut_short_is_finished() {
    at_every_change(Fault::ShortWrite, |scene, operation, result, at, context| {
        result.unwrap_or_else(|error| panic!("{context}: {error:?}"));
        check_and_try_again(scene, operation, Ok(()), at, &context);
    });
}

/// An operation that cannot open or list something fails, or does without; what it leaves goes with the next sweep.
#[test]
fn a_file_that_cannot_be_opened_at_any_time_costs_nothing_that_was_published() {
    at_every_place("a failing read", FaultyDisk::arm_read, |scene, operation, result, at, context| {
        scene.check(&scene.store, &context);
        if result.is_err() && operation.is_undone() {
            operation.run(scene).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        }
        scene.store.collect(&scene.root_ids()).expect("collected");
        scene.check(&scene.store, &context);
        assert_eq!(Scene::temporary(&scene.store), [""; 0], "{context}");
        assert_eq!(scene.store.list().expect("listed").len(), scene.roots.len(), "{context}");
        check_after_power_loss(scene, at, &context);
    });
}

#[test]
fn the_directories_above_a_new_store_are_durable_before_anything_is_published() {
    let dir = directory();
    let disk = Arc::new(FaultyDisk::new(dir.path()));
    let below = ["data", "of", "wrenn"].iter().collect::<PathBuf>();
    let store = LocalStore::open_on(Arc::clone(&disk) as Arc<dyn Disk>, dir.path().join(&below)).expect("a store");
    let published = store.begin(None).expect("begun").publish(b"").expect("published").id();
    let after = directory();
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
                generation.reader(Space::Memory)?.read_at(PageIndex(0), &mut [0; bytes_of(PAGES)])?;
                generation.blob("state")
            });
            let error = error.expect_err("refused").to_string();
            assert!(error.starts_with(&format!("{name} of generation {id}: ")), "{error}");
        }
    }
}
