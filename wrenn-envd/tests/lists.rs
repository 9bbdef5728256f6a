//! A list tells what can be read, and of what not.

mod support;

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
};

use serde_json::{Value, json};
use support::{
    Agent,
    rpc::{call, entries},
};

fn name(entry: &Value) -> &str {
    entry["name"].as_str().expect("a name")
}

#[tokio::test]
async fn what_is_closed_to_the_user_is_marked_and_the_rest_is_listed() {
    let test = "what_is_closed_to_the_user_is_marked_and_the_rest_is_listed";
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: {test}: no root");
    }
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    for (name, mode) in [("closed", 0o700), ("open", 0o755), ("unsearchable", 0o744)] {
        let place = directory.path().join(name);
        fs::create_dir(&place).unwrap();
        fs::write(place.join("file"), "").unwrap();
        fs::set_permissions(&place, Permissions::from_mode(mode)).unwrap();
    }
    let listed = call(&agent, "nobody", "ListDir", json!({"path": directory.path(), "depth": 2})).await.unwrap();
    let told: Vec<_> = entries(&listed).iter().map(|entry| (name(entry), entry["unreadable"].is_string())).collect();
    assert_eq!(told, [("closed", true), ("open", false), ("file", false), ("unsearchable", true)]);
    let reason = entries(&listed)[0]["unreadable"].as_str().unwrap();
    assert!(reason.contains("denied"), "{reason}");
    // What is asked for itself is an error still, and nothing is marked that is not asked for.
    let closed = json!({"path": directory.path().join("closed"), "depth": 1});
    assert_eq!(call(&agent, "nobody", "ListDir", closed).await.unwrap_err().0, "permission_denied");
    let listed = call(&agent, "nobody", "ListDir", json!({"path": directory.path(), "depth": 1})).await.unwrap();
    assert!(entries(&listed).iter().all(|entry| entry["unreadable"].is_null()), "{listed}");
    call(&agent, "nobody", "ListDir", json!({"path": "/", "depth": 2})).await.unwrap();
}

#[tokio::test]
async fn a_name_that_is_no_utf8_comes_back_as_itself() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let odd: [&[u8]; 5] = [b"caf\xe9", b"\xff\xfe", b"a\xc3", "\u{10fee9}".as_bytes(), b"\xf4\x8f\xbb\xa9\xe9"];
    for bytes in odd {
        let file = directory.path().join(OsStr::from_bytes(bytes));
        fs::write(&file, "contents").unwrap();
        let listed = call(&agent, "root", "ListDir", json!({"path": directory.path()})).await.unwrap();
        let entry = &entries(&listed)[0];
        let path = entry["path"].as_str().unwrap();
        assert!(path.ends_with(name(entry)));
        let told = call(&agent, "root", "Stat", json!({"path": path})).await.unwrap();
        assert_eq!(told["entry"]["size"], "8", "{bytes:x?}");
        let escaped: String = path.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let route = format!("/files?path={escaped}");
        let read = agent.call("GET", &route, &[], "").await;
        assert_eq!(read.body(), "contents", "{bytes:x?}");
        let octets = ("content-type", "application/octet-stream");
        let written = agent.call("POST", &route, &[octets], "new").await;
        assert_eq!(serde_json::from_slice::<Value>(written.body()).unwrap()[0]["path"], path);
        assert_eq!(fs::read(&file).unwrap(), b"new", "{bytes:x?}");
        call(&agent, "root", "Remove", json!({"path": path})).await.unwrap();
        assert!(!file.exists(), "{bytes:x?}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// A directory below itself so deep that no path leads there.
fn dig(top: &std::path::Path, levels: usize) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut here = openat(CWD, top, flags, Mode::empty()).expect("it is made");
    let name = "d".repeat(100);
    for _ in 0..levels {
        mkdirat(&here, &name, Mode::RWXU).expect("it is made");
        here = openat(&here, &name, flags, Mode::empty()).expect("it is made");
    }
}

#[tokio::test]
async fn a_tree_that_is_deeper_than_a_path_is_listed_and_removed() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().join("top");
    fs::create_dir(&top).unwrap();
    dig(&top, 300);
    fs::write(directory.path().join("zebra"), "").unwrap();
    let listed = call(&agent, "root", "ListDir", json!({"path": directory.path(), "depth": 1000})).await;
    let count = listed.as_ref().map(|listed| entries(listed).len());
    let removed = call(&agent, "root", "Remove", json!({"path": top})).await;
    let is_left = top.exists();
    if is_left {
        let _ = std::process::Command::new("rm").arg("-rf").arg(&top).status();
    }
    assert_eq!(count.unwrap(), 302);
    removed.unwrap();
    assert!(!is_left);
}

#[tokio::test]
async fn a_tree_that_is_deeper_than_a_path_moves_to_another_disk() {
    let disk = match support::disk::MemoryDisk::mount("16m") {
        Ok(disk) => disk,
        Err(error) => {
            return println!("skipped: a_tree_that_is_deeper_than_a_path_moves_to_another_disk: {error}");
        }
    };
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let (top, moved) = (directory.path().join("top"), disk.path().join("moved"));
    fs::create_dir(&top).unwrap();
    dig(&top, 300);
    let done = call(&agent, "root", "Move", json!({"source": top, "destination": moved})).await;
    let is_left = top.exists();
    if is_left {
        let _ = std::process::Command::new("rm").arg("-rf").arg(&top).status();
    }
    done.unwrap();
    assert!(!is_left);
    let listed = call(&agent, "root", "ListDir", json!({"path": disk.path(), "depth": 1000})).await.unwrap();
    assert_eq!(entries(&listed).len(), 301);
}

fn make_files(directory: &std::path::Path, count: usize, name_bytes: usize) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    for number in 0..count {
        let path = directory.join(format!("{number:0>name_bytes$}"));
        mknodat(CWD, &path, FileType::RegularFile, Mode::RUSR, 0).expect("there is room");
    }
}

#[tokio::test]
async fn a_list_of_too_many_entries_or_bytes_is_refused_before_it_is_in_memory() {
    let test = "a_list_of_too_many_entries_or_bytes_is_refused_before_it_is_in_memory";
    let disk = match support::disk::MemoryDisk::mount("800m") {
        Ok(disk) => disk,
        Err(error) => return println!("skipped: {test}: no memory disk: {error}"),
    };
    let agent = Agent::start();
    let (many, long) = (disk.path().join("many"), disk.path().join(["l"; 6].map(|name| name.repeat(200)).join("/")));
    for directory in [&many, &long] {
        fs::create_dir_all(directory).unwrap();
    }
    make_files(&many, 150_000, 200);
    // Fewer than are allowed, but the path of each is long.
    make_files(&long, 30_000, 200);
    for path in [&many, &long] {
        let refused = call(&agent, "root", "ListDir", json!({"path": path})).await.unwrap_err();
        assert_eq!(refused.0, "resource_exhausted");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak_kib < 80 << 10, "{peak_kib} KiB");
}

#[tokio::test]
async fn a_file_is_not_moved_to_a_path_that_names_a_directory() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), "x").unwrap();
    fs::create_dir(at("tree")).unwrap();
    let request = json!({"source": at("file"), "destination": format!("{}/", at("new").display())});
    assert_eq!(call(&agent, "root", "Move", request).await.unwrap_err().0, "invalid_argument");
    assert!(at("file").exists() && !at("new").exists());
    let request = json!({"source": at("tree"), "destination": format!("{}/", at("new").display())});
    call(&agent, "root", "Move", request).await.unwrap();
    assert!(at("new").is_dir());
}
