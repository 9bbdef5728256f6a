//! Root follows no link that a user of the guest puts in its way while it works.

mod support;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;
use support::{Agent, disk::MemoryDisk, rpc};

fn exchange(one: &Path, other: &Path) {
    // One that is not there at the moment is there again soon.
    let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
}

/// Does `swap` again and again on a thread of its own until `work` has ended.
async fn meanwhile(swap: impl Fn() + Send + Sync, work: impl Future<Output = ()>) {
    let is_over = AtomicBool::new(false);
    let stop = Stop(&is_over);
    tokio::task::block_in_place(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    swap();
                }
            });
            tokio::runtime::Handle::current().block_on(work);
            drop(stop);
        });
    });
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A file that is root's alone.
fn protected(directory: &Path) -> PathBuf {
    let path = directory.join("protected");
    fs::write(&path, "secret").expect("its owner may");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its owner may");
    path
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("its owner may").permissions().mode() & 0o7777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_another_disk_takes_no_link_in_the_place_of_the_file() {
    let test = "a_move_to_another_disk_takes_no_link_in_the_place_of_the_file";
    let disk = match MemoryDisk::mount("8m") {
        Ok(disk) => disk,
        Err(error) => return println!("skipped: {test}: no memory disk: {error}"),
    };
    let (agent, directory) = (Agent::start(), tempfile::tempdir().unwrap());
    let protected = protected(directory.path());
    let (file, link) = (directory.path().join("file"), directory.path().join("link"));
    let moved = disk.path().join("moved");
    let work = async {
        for _ in 0..400 {
            for path in [&file, &link, &moved] {
                let _ = fs::remove_file(path);
            }
            fs::write(&file, "mine").unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
            symlink(&protected, &link).unwrap();
            let request = json!({"source": file, "destination": moved});
            let _ = rpc::call(&agent, "root", "Move", request).await;
            let found = fs::symlink_metadata(&moved);
            if found.is_ok_and(|found| found.is_file()) {
                assert_eq!(fs::read_to_string(&moved).unwrap(), "mine");
                assert_eq!(mode(&moved), 0o666);
            }
        }
    };
    meanwhile(|| exchange(&file, &link), work).await;
    assert_eq!((mode(&protected), fs::read_to_string(&protected).unwrap()), (0o600, "secret".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_another_disk_changes_nothing_but_its_own_copy() {
    let test = "a_move_to_another_disk_changes_nothing_but_its_own_copy";
    let disk = match MemoryDisk::mount("8m") {
        Ok(disk) => disk,
        Err(error) => return println!("skipped: {test}: no memory disk: {error}"),
    };
    let (agent, directory) = (Agent::start(), tempfile::tempdir().unwrap());
    let protected = protected(disk.path());
    let place = disk.path().join("place");
    fs::create_dir(&place).unwrap();
    let link = place.join("link");
    let source = directory.path().join("tree");
    let swap = || {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(".wrenn-move-")) {
                exchange(&entry.path(), &link);
            }
        }
    };
    let work = async {
        for round in 0..400 {
            let _ = fs::remove_file(&link);
            symlink(&protected, &link).unwrap();
            fs::write(&source, "mine").unwrap();
            fs::set_permissions(&source, Permissions::from_mode(0o666)).unwrap();
            let request = json!({"source": source, "destination": place.join(round.to_string())});
            let _ = rpc::call(&agent, "root", "Move", request).await;
            for entry in fs::read_dir(&place).unwrap() {
                let _ = fs::remove_file(entry.unwrap().path());
            }
        }
    };
    meanwhile(swap, work).await;
    assert_eq!((mode(&protected), fs::read_to_string(&protected).unwrap()), (0o600, "secret".to_owned()));
}

/// The directory on the way to what is removed becomes a link to another one, which has something of that name.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_or_composed_lies_in_the_directory_that_was_looked_at() {
    let (agent, directory) = (Agent::start(), tempfile::tempdir().unwrap());
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("other")).unwrap();
    symlink("other", at("link")).unwrap();
    let work = async {
        for round in 0..300 {
            // Whichever of the two is the directory at the moment: each try may be lost to a swap.
            while ["way", "link"].iter().any(|name| fs::symlink_metadata(at(name)).is_ok()) {
                for name in ["way", "link"] {
                    let _ = fs::remove_file(at(name)).or_else(|_| fs::remove_dir_all(at(name)));
                }
            }
            let (mine, others) = (at("way/file"), at("other/file"));
            fs::write(&others, "others").unwrap();
            fs::create_dir(at("fresh")).unwrap();
            fs::write(at("fresh/file"), "mine").unwrap();
            fs::rename(at("fresh"), at("way")).unwrap();
            symlink("other", at("link")).unwrap();
            let body = json!({"source_paths": [mine], "destination": at(&format!("made{round}"))}).to_string();
            let json = ("content-type", "application/json");
            let answer = agent.call("POST", "/files/compose", &[json], body).await;
            let made = fs::read_to_string(at(&format!("made{round}"))).unwrap_or_default();
            // What was taken in is what went.
            assert!(made != "mine" || others.exists(), "{answer:?}");
        }
    };
    meanwhile(|| exchange(&at("way"), &at("link")), work).await;
}
