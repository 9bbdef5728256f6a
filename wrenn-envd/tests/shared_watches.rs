//! Many watches, and large ones, at a time; each tells of its own directory and of nothing else.

mod support;

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};
use support::{Agent, rpc::call};

async fn create(agent: &Agent, path: &Path, recursive: bool) -> Result<String, (String, String)> {
    let made = call(agent, "root", "CreateWatcher", json!({"path": path, "recursive": recursive})).await?;
    Ok(made["watcherId"].as_str().expect("an id").to_owned())
}

async fn take(agent: &Agent, id: &str) -> Vec<(String, String)> {
    let told = call(agent, "root", "GetWatcherEvents", json!({"watcherId": id})).await.expect("events");
    let text = |event: &Value, name: &str| event[name].as_str().expect("text").to_owned();
    let events = told["events"].as_array().cloned().unwrap_or_default();
    events.iter().map(|event| (text(event, "name"), text(event, "type").replace("EVENT_TYPE_", ""))).collect()
}

/// All events up to the one that is wanted.
async fn until(agent: &Agent, id: &str, name: &str, kind: &str) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    for _ in 0..1000 {
        seen.extend(take(agent, id).await);
        if seen.contains(&(name.to_owned(), kind.to_owned())) {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no {kind} of {name:?} within 10 s: {seen:?}")
}

fn told(events: &[(&str, &str)]) -> Vec<(String, String)> {
    events.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect()
}

#[tokio::test]
async fn a_hundred_and_fifty_watches_work_at_a_time() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let mut ids = Vec::new();
    for number in 0..150 {
        let place = directory.path().join(number.to_string());
        fs::create_dir(&place).unwrap();
        ids.push(create(&agent, &place, number % 2 == 0).await.unwrap());
    }
    for number in 0..150 {
        fs::write(directory.path().join(format!("{number}/file{number}")), "").unwrap();
    }
    for (number, id) in ids.iter().enumerate() {
        let name = format!("file{number}");
        assert_eq!(until(&agent, id, &name, "CREATE").await, told(&[(&name, "CREATE")]));
    }
}

#[tokio::test]
async fn watches_of_one_directory_do_not_disturb_each_other() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("below/deep")).unwrap();
    let flat = create(&agent, directory.path(), false).await.unwrap();
    let tree = create(&agent, directory.path(), true).await.unwrap();
    let below = create(&agent, &at("below"), true).await.unwrap();
    fs::write(at("below/deep/one"), "").unwrap();
    fs::write(at("end"), "").unwrap();
    assert_eq!(until(&agent, &flat, "end", "CREATE").await, told(&[("end", "CREATE")]));
    let expected = told(&[("below/deep/one", "CREATE"), ("end", "CREATE")]);
    assert_eq!(until(&agent, &tree, "end", "CREATE").await, expected);
    assert_eq!(until(&agent, &below, "deep/one", "CREATE").await, told(&[("deep/one", "CREATE")]));
    // The end of one leaves the others what they share with it.
    call(&agent, "root", "RemoveWatcher", json!({"watcherId": tree})).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    fs::write(at("below/deep/two"), "").unwrap();
    fs::write(at("last"), "").unwrap();
    assert_eq!(until(&agent, &below, "deep/two", "CREATE").await, told(&[("deep/two", "CREATE")]));
    assert_eq!(until(&agent, &flat, "last", "CREATE").await, told(&[("last", "CREATE")]));
    let again = create(&agent, directory.path(), true).await.unwrap();
    fs::write(at("below/deep/three"), "").unwrap();
    until(&agent, &again, "below/deep/three", "CREATE").await;
    until(&agent, &below, "deep/three", "CREATE").await;
}

#[tokio::test]
async fn nine_thousand_directories_are_watched() {
    let test = "nine_thousand_directories_are_watched";
    let read = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap();
    if read.trim().parse::<u64>().unwrap() < 10_000 {
        return println!("skipped: {test}: the kernel allows {} watches", read.trim());
    }
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    for number in 0..9000 {
        fs::create_dir_all(directory.path().join(format!("{}/{number}", number % 90))).unwrap();
    }
    let id = create(&agent, directory.path(), true).await.unwrap();
    fs::write(directory.path().join("89/8999/file"), "").unwrap();
    assert_eq!(until(&agent, &id, "89/8999/file", "CREATE").await, told(&[("89/8999/file", "CREATE")]));
}

#[tokio::test]
async fn what_was_moved_out_of_sight_is_told_no_more() {
    let agent = Agent::start();
    let (directory, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = create(&agent, directory.path(), true).await.unwrap();
    let mut expected = Vec::new();
    for round in 0..100 {
        let name = format!("in{round}");
        fs::create_dir(directory.path().join(&name)).unwrap();
        expected.push((name.clone(), "CREATE".to_owned()));
        until(&agent, &id, &name, "CREATE").await;
        let moved = out.path().join(&name);
        fs::rename(directory.path().join(&name), &moved).unwrap();
        fs::write(moved.join("secret"), "x").unwrap();
        let seen = until(&agent, &id, &name, "RENAME").await;
        assert_eq!(seen, told(&[(&name, "RENAME")]), "round {round}");
        assert!(take(&agent, &id).await.iter().all(|(name, _)| !name.contains("secret")), "round {round}");
    }
    fs::write(directory.path().join("end"), "").unwrap();
    assert_eq!(until(&agent, &id, "end", "CREATE").await, told(&[("end", "CREATE")]));
}

#[tokio::test]
async fn directories_that_lie_too_deep_to_be_watched_are_said() {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let flat = create(&agent, directory.path(), false).await.unwrap();
    let tree = create(&agent, directory.path(), true).await.unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut here = openat(CWD, directory.path(), flags, Mode::empty()).unwrap();
    let name = "d".repeat(100);
    for _ in 0..60 {
        mkdirat(&here, &name, Mode::RWXU).unwrap();
        here = openat(&here, &name, flags, Mode::empty()).unwrap();
    }
    let mut refusal = None;
    for _ in 0..500 {
        refusal = call(&agent, "root", "GetWatcherEvents", json!({"watcherId": tree})).await.err();
        if refusal.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(refusal.unwrap().0, "data_loss");
    assert_eq!(until(&agent, &flat, &name, "CREATE").await, told(&[(&name, "CREATE")]));
    // One that goes on tells of all the others.
    fs::write(directory.path().join("file"), "").unwrap();
    let mut told_of_the_file = false;
    for _ in 0..1000 {
        // What lies too deep may be found in more than one step, and each is said.
        let told = call(&agent, "root", "GetWatcherEvents", json!({"watcherId": tree})).await;
        told_of_the_file |= told.is_ok_and(|told| told.to_string().contains("\"file\""));
        if told_of_the_file {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(told_of_the_file);
    let refused = create(&agent, directory.path(), true).await.unwrap_err();
    assert!(refused.0 == "invalid_argument" && refused.1.contains("too deep"), "{refused:?}");
}

/// As E2B's agent tells it, and as the tests of its clients count it.
#[tokio::test]
async fn an_upload_of_a_new_file_is_three_events() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let id = create(&agent, directory.path(), false).await.unwrap();
    let octets = ("content-type", "application/octet-stream");
    let route = format!("/files?path={}/file", directory.path().display());
    agent.call("POST", &route, &[octets], "one").await;
    let expected = told(&[("file", "CREATE"), ("file", "CHMOD"), ("file", "WRITE")]);
    assert_eq!(until(&agent, &id, "file", "WRITE").await, expected);
    agent.call("POST", &route, &[octets], "two").await;
    assert_eq!(until(&agent, &id, "file", "WRITE").await, told(&[("file", "WRITE")]));
}

/// What comes in at once is told as far as is kept in memory, and the loss of the rest is said.
#[tokio::test]
async fn a_huge_directory_that_comes_in_is_told_in_part_and_watched_whole() {
    let agent = Agent::start();
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = create(&agent, directory.path(), true).await.unwrap();
    fs::create_dir_all(elsewhere.path().join("tree/deep/deeper")).unwrap();
    for number in 0..40_000 {
        fs::write(elsewhere.path().join(format!("tree/{number}")), "").unwrap();
    }
    fs::rename(elsewhere.path().join("tree"), directory.path().join("tree")).unwrap();
    let mut told = 0;
    let refusal = loop {
        match call(&agent, "root", "GetWatcherEvents", json!({"watcherId": id})).await {
            Ok(events) => told += events["events"].as_array().map_or(0, Vec::len),
            Err(refusal) => break refusal,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(told < 40_000, "all of it is in memory at a time");
    };
    assert_eq!(refusal.0, "data_loss");
    assert!(told >= 10_000, "{told}");
    fs::write(directory.path().join("tree/deep/deeper/file"), "").unwrap();
    until(&agent, &id, "tree/deep/deeper/file", "CREATE").await;
}
