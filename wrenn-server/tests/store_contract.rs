//! What every store promises.
#![expect(clippy::unwrap_used, reason = "tests")]

use wrenn_core::SandboxId;
use wrenn_server::store::contract::{KeyRecord, SandboxRecord, SnapshotRecord, Status, Store};
use wrenn_server::store::sqlite::Sqlite;

fn key(id: &str, created_at_ms: i64) -> KeyRecord {
    KeyRecord { id: id.to_owned(), name: format!("of {id}"), hash: vec![7; 32], created_at_ms, revoked_at_ms: None }
}

fn id(number: u64) -> SandboxId {
    format!("sb{number:016x}").parse().unwrap()
}

fn record(number: u64, owner: &str) -> SandboxRecord {
    SandboxRecord {
        id: id(number),
        owner: owner.to_owned(),
        template: "base".to_owned(),
        vcpus: 2,
        memory_mib: 512,
        timeout_sec: u32::MAX,
        pauses_at_timeout: number % 2 == 1,
        status: Status::Running,
        why: None,
        created_at_ms: i64::try_from(number).unwrap(),
        started_at_ms: 5,
        updated_at_ms: 6,
    }
}

async fn keeps_keys(store: &dyn Store) {
    for (id, at) in [("a", 1), ("b", 3), ("c", 2)] {
        store.add_key(&key(id, at)).await.unwrap();
    }
    assert!(store.add_key(&key("a", 9)).await.is_err(), "an id is one key's");
    assert_eq!(store.key("a").await.unwrap(), Some(key("a", 1)));
    assert_eq!(store.key("A").await.unwrap(), None);
    let order: Vec<_> = store.keys().await.unwrap().into_iter().map(|key| key.id).collect();
    assert_eq!(order, ["b", "c", "a"]);
    assert!(store.revoke_key("a", 4).await.unwrap());
    assert!(!store.revoke_key("a", 5).await.unwrap() && !store.revoke_key("d", 5).await.unwrap());
    assert_eq!(store.key("a").await.unwrap(), Some(KeyRecord { revoked_at_ms: Some(4), ..key("a", 1) }));
}

async fn keeps_sandboxes(store: &dyn Store) {
    for number in 1..=3 {
        store.add_sandbox(&record(number, "ada")).await.unwrap();
    }
    store.add_sandbox(&record(4, "eve'; DROP TABLE sandboxes; --")).await.unwrap();
    assert!(store.add_sandbox(&record(1, "eve")).await.is_err(), "an id is one sandbox's");
    assert_eq!(store.sandbox(&id(1)).await.unwrap(), Some(record(1, "ada")));
    assert_eq!(store.sandbox(&id(9)).await.unwrap(), None);
    let newest_first: Vec<_> = (1..=3).rev().map(|number| record(number, "ada")).collect();
    assert_eq!(store.sandboxes_of("ada").await.unwrap(), newest_first);
    assert_eq!(store.sandboxes_of("nobody").await.unwrap(), []);

    store.set_status(&id(2), Status::Error, Some("it broke"), false, 7).await.unwrap();
    store.set_status(&id(3), Status::Running, None, true, 8).await.unwrap();
    let broken =
        SandboxRecord { status: Status::Error, why: Some("it broke".into()), updated_at_ms: 7, ..record(2, "ada") };
    let started = SandboxRecord { started_at_ms: 8, updated_at_ms: 8, ..record(3, "ada") };
    assert_eq!(store.sandbox(&id(2)).await.unwrap(), Some(broken.clone()));
    assert_eq!(store.sandboxes_with(Status::Error).await.unwrap(), [broken]);
    let running = store.sandboxes_with(Status::Running).await.unwrap();
    assert_eq!(running[..2], [record(1, "ada"), started]);
    assert_eq!((running.len(), store.sandboxes_with(Status::Paused).await.unwrap().len()), (3, 0));
}

async fn keeps_snapshots(store: &dyn Store) {
    let record = |name: &str, owner: &str| SnapshotRecord { name: name.into(), owner: owner.into(), created_at_ms: 1 };
    for name in ["warm", "cold"] {
        assert!(store.add_snapshot(&record(name, "ada")).await.unwrap());
    }
    assert!(!store.add_snapshot(&record("warm", "eve")).await.unwrap(), "a name is one owner's");
    assert_eq!(store.snapshots().await.unwrap(), [record("cold", "ada"), record("warm", "ada")]);
    store.remove_snapshot("warm").await.unwrap();
    store.remove_snapshot("warm").await.unwrap();
    assert_eq!(store.snapshots().await.unwrap(), [record("cold", "ada")]);
}

async fn bears_many_at_once(store: &dyn Store) {
    let adds = (100..200).map(|number| async move {
        store.add_sandbox(&record(number, "many")).await.unwrap();
        store.set_status(&id(number), Status::Paused, None, false, 9).await.unwrap();
    });
    futures::future::join_all(adds).await;
    assert_eq!(store.sandboxes_of("many").await.unwrap().len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_what_it_promises() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.sqlite");
    let store = Sqlite::open(&path).await.unwrap();
    keeps_keys(&store).await;
    keeps_sandboxes(&store).await;
    keeps_snapshots(&store).await;
    bears_many_at_once(&store).await;
    drop(store);
    let again = Sqlite::open(&path).await.unwrap();
    assert_eq!(again.sandboxes_of("many").await.unwrap().len(), 100, "also for the next server");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o600);
}

#[tokio::test]
async fn what_is_no_store_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.sqlite");
    std::fs::write(&path, "not a database, and longer than a header of one".repeat(10)).unwrap();
    let error = Sqlite::open(&path).await.unwrap_err();
    assert!(error.to_string().contains("records.sqlite"), "{error}");
    assert!(Sqlite::open(&dir.path().join("nowhere/records.sqlite")).await.is_err());
}
