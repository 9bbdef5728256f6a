//! What is said of files is E2B's on the wire, to the last field: messages of both codecs, written out.

mod support;

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use nix::unistd::{Gid, Group, User, getegid, geteuid};
use serde_json::{Value, json};
use support::{
    Agent,
    stream::FrameStream,
    wire::{number, text},
};

async fn unary(agent: &Agent, method: &str, codec: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let kind = format!("application/{codec}");
    let headers = [("content-type", kind.as_str()), ("connect-protocol-version", "1")];
    let route = format!("/filesystem.Filesystem/{method}");
    let answer = agent.call("POST", &route, &headers, body.as_ref().to_vec()).await;
    let told = answer.headers()["content-type"].to_str().expect("text");
    assert_eq!((answer.status().as_u16(), told), (200, kind.as_str()), "{method}: {answer:?}");
    answer.into_body().to_vec()
}

async fn unary_json(agent: &Agent, method: &str, body: Value) -> Value {
    serde_json::from_slice(&unary(agent, method, "json", body.to_string()).await).expect("JSON")
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Where this process may, a group whose name is not its owner's: the two are not to be mixed up.
fn gid() -> Gid {
    if geteuid().is_root() { Gid::from_raw(1) } else { getegid() }
}

/// Who the file belongs to.
fn owner() -> [String; 2] {
    let (user, group) = (User::from_uid(geteuid()), Group::from_gid(gid()));
    [user.expect("users").expect("oneself").name, group.expect("groups").expect("it has a name").name]
}

/// 2024-05-06T07:08:09.5Z
const SECONDS: u64 = 1_714_979_289;
const NANOS: u64 = 500_000_000;

/// Seven bytes from 2024, as `-rw-r-----`, with metadata where the file system keeps any.
async fn make_file(agent: &Agent, path: &Path) {
    let headers = [("content-type", "application/octet-stream"), ("x-metadata-kind", "golden")];
    let answer = agent.call("POST", &format!("/files?path={}", utf8(path)), &headers, "seven b").await;
    assert_eq!(answer.status().as_u16(), 200, "{answer:?}");
    chown(path, None, Some(gid().as_raw())).expect("its owner may");
    fs::set_permissions(path, Permissions::from_mode(0o640)).expect("its owner may");
    let time = UNIX_EPOCH + Duration::new(SECONDS, u32::try_from(NANOS).expect("less than a second"));
    File::open(path).and_then(|file| file.set_modified(time)).expect("its owner may");
}

/// The file's entry, as the table of fields has it.
fn file_in_json(path: &Path) -> Value {
    let [owner, group] = owner();
    json!({
        "name": "file", "type": "FILE_TYPE_FILE", "path": utf8(path), "size": "7", "mode": 0o640,
        "permissions": "-rw-r-----", "owner": owner, "group": group, "modifiedTime": "2024-05-06T07:08:09.500Z",
        "metadata": {"kind": "golden"},
    })
}

fn file_in_binary(path: &Path) -> Vec<u8> {
    let [owner, group] = owner();
    [
        text(1, "file"),
        number(2, 1),
        text(3, utf8(path)),
        number(4, 7),
        number(5, 0o640),
        text(6, "-rw-r-----"),
        text(7, owner),
        text(8, group),
        text(9, [number(1, SECONDS), number(2, NANOS)].concat()),
        text(11, [text(1, "kind"), text(2, "golden")].concat()),
    ]
    .concat()
}

#[tokio::test]
async fn an_entry_has_e2bs_fields() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    make_file(&agent, &path).await;
    let told = unary_json(&agent, "Stat", json!({"path": utf8(&path)})).await;
    assert_eq!(told, json!({"entry": file_in_json(&path)}));
    let told = unary(&agent, "Stat", "proto", text(1, utf8(&path))).await;
    assert_eq!(told, text(1, file_in_binary(&path)));
    // Where it is moved to, it is the same but for its name.
    let moved = directory.path().join("moved/file");
    let request = json!({"source": utf8(&path), "destination": utf8(&moved)});
    assert_eq!(unary_json(&agent, "Move", request).await, json!({"entry": file_in_json(&moved)}));
    let back = [text(1, utf8(&moved)), text(2, utf8(&path))].concat();
    assert_eq!(unary(&agent, "Move", "proto", back).await, text(1, file_in_binary(&path)));
    assert_eq!(unary_json(&agent, "Remove", json!({"path": utf8(&path)})).await, json!({}));
    assert_eq!(unary(&agent, "Remove", "proto", text(1, utf8(&path))).await, b"");
}

/// A directory with a directory, a file, a link to it, and a link to nothing.
#[tokio::test]
async fn a_list_has_an_entry_for_each_kind() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
    let made = unary_json(&agent, "MakeDir", json!({"path": utf8(&at("a"))})).await;
    assert_eq!((&made["entry"]["name"], &made["entry"]["type"]), (&"a".into(), &"FILE_TYPE_DIRECTORY".into()));
    make_file(&agent, &at("file")).await;
    symlink("file", at("link")).unwrap();
    symlink("nowhere", at("lost")).unwrap();
    let told = unary_json(&agent, "ListDir", json!({"path": utf8(&at("")), "depth": 1})).await;
    let entries = told["entries"].as_array().unwrap();
    assert_eq!(told.as_object().unwrap().len(), 1);
    let kinds: Vec<_> = entries.iter().map(|entry| (entry["name"].as_str().unwrap(), &entry["type"])).collect();
    let [file, directory, link] = ["FILE_TYPE_FILE", "FILE_TYPE_DIRECTORY", "FILE_TYPE_SYMLINK"].map(Value::from);
    assert_eq!(kinds, [("a", &directory), ("file", &file), ("link", &file), ("lost", &link)]);
    assert_eq!(entries[1], file_in_json(&at("file")));
    // What the agent adds to E2B's fields, and for links alone.
    let target = |entry: &Value| (entry["symlinkTarget"].clone(), entry["isSymlink"].clone());
    assert_eq!(target(&entries[0]), (Value::Null, Value::Null));
    assert_eq!(target(&entries[2]), (utf8(&at("file")).into(), true.into()));
    assert_eq!(target(&entries[3]), (utf8(&at("nowhere")).into(), true.into()));
    // A link's size is that of its target's name; its metadata is its target's.
    let told = unary(&agent, "ListDir", "proto", [text(1, utf8(&at(""))), number(2, 1)].concat()).await;
    let holds = |piece: Vec<u8>| told.windows(piece.len()).any(|window| window == piece);
    assert!(holds(text(1, file_in_binary(&at("file")))));
    let metadata = text(11, [text(1, "kind"), text(2, "golden")].concat());
    for (name, kind, size, target, metadata) in
        [("link", 1, 4, "file", metadata), ("lost", 3, 7, "nowhere", Vec::new())]
    {
        let head = [text(1, name), number(2, kind), text(3, utf8(&at(name))), number(4, size)].concat();
        assert!(holds(head) && holds([text(10, utf8(&at(target))), metadata, number(100, 1)].concat()), "{name}");
    }
}

/// Takes the next event of both codecs: its kind has a name in one, and a number in the other.
async fn expect(streams: &mut [FrameStream; 2], name: &str, kind: &str, number_of_kind: u64) {
    let [as_json, as_binary] = streams;
    let told: Value = serde_json::from_str(&as_json.text().await).expect("JSON");
    assert_eq!(told, json!({"filesystem": {"name": name, "type": kind}}));
    assert_eq!(as_binary.message().await, text(2, [text(1, name), number(2, number_of_kind)].concat()), "{kind}");
}

#[tokio::test]
async fn events_of_a_watch_have_e2bs_names_and_numbers() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let watched = directory.path().join("watched");
    fs::create_dir(&watched).unwrap();
    let route = "/filesystem.Filesystem/WatchDir";
    let often = [("keepalive-ping-interval", "1")];
    let mut streams = [
        FrameStream::open(&agent, route, "json", &often, json!({"path": utf8(&watched)}).to_string()).await,
        FrameStream::open(&agent, route, "proto", &often, text(1, utf8(&watched))).await,
    ];
    assert_eq!(streams[0].text().await, r#"{"start":{}}"#);
    assert_eq!(streams[1].message().await, [0x0a, 0]);
    // Nothing happens, and so a sign of life follows.
    assert_eq!(streams[0].text().await, r#"{"keepalive":{}}"#);
    assert_eq!(streams[1].message().await, [0x1a, 0]);

    let file = File::create(watched.join("one")).unwrap();
    expect(&mut streams, "one", "EVENT_TYPE_CREATE", 1).await;
    std::io::Write::write_all(&mut &file, b"x").unwrap();
    expect(&mut streams, "one", "EVENT_TYPE_WRITE", 2).await;
    file.set_permissions(Permissions::from_mode(0o600)).unwrap();
    expect(&mut streams, "one", "EVENT_TYPE_CHMOD", 5).await;
    fs::rename(watched.join("one"), watched.join("two")).unwrap();
    expect(&mut streams, "one", "EVENT_TYPE_RENAME", 4).await;
    expect(&mut streams, "two", "EVENT_TYPE_CREATE", 1).await;
    fs::remove_file(watched.join("two")).unwrap();
    drop(file);
    expect(&mut streams, "two", "EVENT_TYPE_REMOVE", 3).await;
    fs::remove_dir(&watched).unwrap();
    expect(&mut streams, ".", "EVENT_TYPE_REMOVE", 3).await;
    for stream in &mut streams {
        assert_eq!((stream.next().await, stream.next().await), (Some((2, b"{}".to_vec())), None));
    }
}

#[tokio::test]
async fn an_event_carries_its_entry_and_a_watcher_tells_the_same() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let (file, elsewhere) = (directory.path().join("watched/file"), directory.path().join("file"));
    fs::create_dir(directory.path().join("watched")).unwrap();
    make_file(&agent, &elsewhere).await;
    let path = utf8(file.parent().unwrap());
    let [json_id, binary_id] = [
        unary_json(&agent, "CreateWatcher", json!({"path": path, "includeEntry": true})).await["watcherId"].clone(),
        String::from_utf8(
            unary(&agent, "CreateWatcher", "proto", [text(1, path), number(3, 1)].concat()).await[2..].to_vec(),
        )
        .unwrap()
        .into(),
    ];
    fs::rename(&elsewhere, &file).unwrap();
    let event = json!({"name": "file", "type": "EVENT_TYPE_CREATE", "entry": file_in_json(&file)});
    let told = until(async || {
        let told = unary_json(&agent, "GetWatcherEvents", json!({"watcherId": json_id})).await;
        (told != json!({})).then_some(told)
    });
    assert_eq!(told.await, json!({"events": [event]}));
    let event = [text(1, "file"), number(2, 1), text(3, file_in_binary(&file))].concat();
    let told = until(async || {
        let told = unary(&agent, "GetWatcherEvents", "proto", text(1, binary_id.as_str().unwrap())).await;
        (!told.is_empty()).then_some(told)
    });
    assert_eq!(told.await, text(1, event));
    assert_eq!(unary_json(&agent, "RemoveWatcher", json!({"watcherId": json_id})).await, json!({}));
    assert_eq!(unary(&agent, "RemoveWatcher", "proto", text(1, binary_id.as_str().unwrap())).await, b"");
}

/// What `ask` has in the end.
async fn until<T>(ask: impl AsyncFn() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(told) = ask().await {
            return told;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing is told within 5 s");
}
