//! What every store promises.
#![expect(clippy::unwrap_used, reason = "tests")]

mod postgres;

use wrenn_core::SandboxId;
use wrenn_server::store::contract::Store;
use wrenn_server::store::postgres::Postgres;
use wrenn_server::store::records::{
    Asked, BuildRecord, By, DeliveryRecord, EventRecord, EventsOf, Hidden, KeyRecord, Network, Order, Page,
    RequestRecord, SandboxRecord, SnapshotRecord, Status, Subject, TagRecord, Terms, TimeoutFrom, Usage, WebhookRecord,
};
use wrenn_server::store::sqlite::Sqlite;

fn key(id: &str, created_at_ms: i64) -> KeyRecord {
    let terms = Terms { expires_at_ms: Some(9), sandboxes_max: Some(3), ..Terms::default() };
    let (name, hash) = (format!("of {id}"), vec![7; 32]);
    KeyRecord { id: id.to_owned(), name, hash, created_at_ms, revoked_at_ms: None, terms }
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
        asked: Asked {
            labels: [("a \"b\"".to_owned(), "\u{1f600}".to_owned())].into(),
            timeout_from: TimeoutFrom::Start,
            network: Network { internet: Some(false), ..Network::default() },
            ..Asked::default()
        },
    }
}

/// All of an owner's, the newest first.
async fn all_of(store: &dyn Store, owner: &str) -> Vec<SandboxRecord> {
    let (by, order) = (By::Created, Order::NewestFirst);
    let page = Page { owner, statuses: &Status::ALL, by, order, after: None, len_max: 1000 };
    store.page(&page).await.unwrap()
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
    assert_eq!(all_of(store, "ada").await, newest_first);
    assert_eq!(all_of(store, "nobody").await, []);

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
    assert_eq!(store.usage("ada").await.unwrap(), Usage { sandboxes: 2, vcpus: 4, memory_mib: 1024 });
    assert_eq!(store.usage("nobody").await.unwrap(), Usage::default());

    store.set_timeout(&id(1), 77, 9).await.unwrap();
    let asked = Asked { wakes: true, ..Asked::default() };
    store.set_asked(&id(1), &asked, 10).await.unwrap();
    let changed = SandboxRecord { timeout_sec: 77, asked, updated_at_ms: 10, ..record(1, "ada") };
    assert_eq!(store.sandbox(&id(1)).await.unwrap(), Some(changed));
}

/// Pages of an owner whose sandboxes were made two in each millisecond.
async fn gives_pages(store: &dyn Store) {
    for number in 50..=57 {
        let at = i64::try_from(number / 2).unwrap();
        let status = if number == 53 { Status::Stopped } else { Status::Running };
        let made = SandboxRecord { created_at_ms: at, started_at_ms: 100 - at, status, ..record(number, "pages") };
        store.add_sandbox(&made).await.unwrap();
    }
    let pages = async |by, order, len_max| {
        let (mut numbers, mut after) = (Vec::new(), None);
        loop {
            let page = Page { owner: "pages", statuses: &[Status::Running], by, order, after, len_max };
            let found = store.page(&page).await.unwrap();
            let Some(last) = found.last() else { return numbers };
            let at = if by == By::Created { last.created_at_ms } else { last.started_at_ms };
            after = Some((at, last.id.to_string()));
            numbers.extend(found.iter().map(|one| u64::from_str_radix(&one.id.as_str()[2..], 16).unwrap()));
        }
    };
    for len_max in [1, 2, 3, 100] {
        assert_eq!(pages(By::Created, Order::NewestFirst, len_max).await, [56, 57, 54, 55, 52, 50, 51]);
        assert_eq!(pages(By::Created, Order::OldestFirst, len_max).await, [50, 51, 52, 54, 55, 56, 57]);
        assert_eq!(pages(By::Started, Order::NewestFirst, len_max).await, [50, 51, 52, 54, 55, 56, 57]);
    }
    let (by, order) = (By::Created, Order::NewestFirst);
    let none = Page { owner: "pages", statuses: &[], by, order, after: None, len_max: 9 };
    assert_eq!(store.page(&none).await.unwrap(), []);
}

async fn keeps_requests(store: &dyn Store) {
    let begin = async |key, digest: &[u8]| store.begin_request("ada", key, digest, 5).await.unwrap();
    assert_eq!(begin("a", b"1").await, None, "it is the first one");
    let under_way = RequestRecord { digest: b"1".to_vec(), sandbox: None, created_at_ms: 5 };
    assert_eq!(begin("a", b"2").await, Some(under_way.clone()));
    store.end_request("ada", "a", Some(&id(1))).await.unwrap();
    assert_eq!(begin("a", b"1").await, Some(RequestRecord { sandbox: Some(id(1)), ..under_way }));
    assert_eq!(store.begin_request("eve", "a", b"3", 5).await.unwrap(), None, "another's is another one");
    assert_eq!(begin("b", b"1").await, None);
    store.end_request("ada", "b", None).await.unwrap();
    assert_eq!(begin("b", b"1").await, None, "it was forgotten");
    store.forget_before(6).await.unwrap();
    assert_eq!(begin("a", b"9").await, None);
}

async fn keeps_events(store: &dyn Store) {
    let event = |number: u64, sandbox: u64, why: Option<&str>| EventRecord {
        id: format!("ev{number}"),
        owner: "ada".to_owned(),
        subject: Subject::Sandbox(id(sandbox)),
        template: "base".to_owned(),
        kind: "paused".to_owned(),
        why: why.map(str::to_owned),
        at_ms: i64::try_from(number).unwrap(),
    };
    let of_build = EventRecord { subject: Subject::Build("b".to_owned()), ..event(12, 2, Some("it's over")) };
    let all = [event(11, 1, None), of_build, event(13, 1, None)];
    for event in &all {
        assert_eq!(store.add_event(event, 9).await.unwrap(), [""; 0]);
    }
    let events = async |of: EventsOf<'_>, order, skipped, len_max| {
        store.events("ada", of, order, skipped, len_max).await.unwrap()
    };
    assert_eq!(events(EventsOf::Everything, Order::OldestFirst, 0, 9).await, all);
    assert_eq!(events(EventsOf::Everything, Order::NewestFirst, 1, 1).await, all[1..2]);
    for of in [EventsOf::Sandboxes, EventsOf::Sandbox(&id(1))] {
        assert_eq!(events(of, Order::OldestFirst, 0, 9).await, [all[0].clone(), all[2].clone()], "{of:?}");
    }
    assert_eq!(store.events("eve", EventsOf::Everything, Order::OldestFirst, 0, 9).await.unwrap(), []);
    let after = async |owner, id, len_max| store.events_after(owner, id, len_max).await.unwrap();
    assert_eq!(after("ada", "ev11", 9).await, Some(all[1..].to_vec()));
    assert_eq!(after("ada", "ev11", 1).await, Some(all[1..2].to_vec()));
    assert_eq!(after("ada", "ev13", 9).await, Some(Vec::new()));
    assert_eq!((after("ada", "ev9", 9).await, after("eve", "ev11", 9).await), (None, None));
    store.forget_before(13).await.unwrap();
    assert_eq!(events(EventsOf::Everything, Order::OldestFirst, 0, 9).await, all[2..]);
}

async fn keeps_snapshots(store: &dyn Store) {
    let record = |name: &str, owner: &str| SnapshotRecord {
        name: name.into(),
        owner: owner.into(),
        vcpus: 2,
        memory_mib: 1024,
        disk_mib: 4096,
        source: id(1).to_string(),
        created_at_ms: 1,
    };
    for name in ["warm", "cold"] {
        assert!(store.add_snapshot(&record(name, "ada")).await.unwrap());
    }
    assert!(!store.add_snapshot(&record("warm", "eve")).await.unwrap(), "a name is one owner's");
    assert_eq!(store.snapshots().await.unwrap(), [record("cold", "ada"), record("warm", "ada")]);
    assert_eq!(store.snapshot("warm").await.unwrap(), Some(record("warm", "ada")));
    assert_eq!(store.snapshot("Warm").await.unwrap(), None);
    let anew = SnapshotRecord { vcpus: 4, source: id(2).to_string(), created_at_ms: 7, ..record("warm", "ada") };
    assert!(store.set_snapshot(&anew).await.unwrap());
    assert!(!store.set_snapshot(&record("warm", "eve")).await.unwrap(), "it is another's");
    assert!(!store.set_snapshot(&record("none", "ada")).await.unwrap());
    assert_eq!(store.snapshots().await.unwrap(), [record("cold", "ada"), anew]);
    store.remove_snapshot("warm").await.unwrap();
    store.remove_snapshot("warm").await.unwrap();
    assert_eq!(store.snapshots().await.unwrap(), [record("cold", "ada")]);
}

async fn keeps_tags(store: &dyn Store) {
    let record = |owner: &str, name: &str, tag: &str, template: &str| TagRecord {
        owner: owner.into(),
        name: name.into(),
        tag: tag.into(),
        template: template.into(),
        created_at_ms: 1,
    };
    let first = [record("ada", "n", "b", "one"), record("ada", "n", "a.1", "one"), record("ada", "n", "c", "two")];
    store.set_tags(&first).await.unwrap();
    store.set_tags(&[record("eve", "n", "b", "three"), record("ada", "m", "b", "one")]).await.unwrap();
    assert_eq!(store.tag("ada", "n", "b").await.unwrap(), Some(record("ada", "n", "b", "one")));
    assert_eq!(store.tag("ada", "n", "B").await.unwrap(), None);
    store.set_tags(&[TagRecord { created_at_ms: 2, ..record("ada", "n", "b", "two") }]).await.unwrap();
    let sorted = [
        record("ada", "n", "a.1", "one"),
        TagRecord { created_at_ms: 2, ..record("ada", "n", "b", "two") },
        record("ada", "n", "c", "two"),
    ];
    assert_eq!(store.tags("ada", "n").await.unwrap(), sorted);
    store.remove_tag("ada", "n", "a.1").await.unwrap();
    store.remove_tag("ada", "n", "a.1").await.unwrap();
    assert_eq!(store.tags("ada", "n").await.unwrap(), sorted[1..]);
    assert_eq!(store.tags_of("one").await.unwrap(), [record("ada", "m", "b", "one")]);
    let of_two = [TagRecord { created_at_ms: 2, ..record("ada", "n", "b", "two") }, record("ada", "n", "c", "two")];
    assert_eq!(store.tags_of("two").await.unwrap(), of_two);
    // A template takes its tags with it.
    store.remove_snapshot("two").await.unwrap();
    assert_eq!(store.tags("ada", "n").await.unwrap(), []);
    assert_eq!(store.tags("ada", "m").await.unwrap(), [record("ada", "m", "b", "one")]);
    assert_eq!(store.tags("eve", "n").await.unwrap(), [record("eve", "n", "b", "three")]);
}

async fn keeps_builds(store: &dyn Store) {
    let record = |id: &str, created_at_ms: i64, log: &str| BuildRecord {
        id: id.into(),
        owner: "ada".into(),
        created_at_ms,
        changed_at_ms: created_at_ms,
        told: serde_json::json!({"status": "waiting", "log": [log]}),
    };
    // What a command writes may be anything.
    let (later, first) = (record("a", 2, "\u{0}\u{1b}[1m\u{1f600}'\""), record("b", 1, ""));
    for build in [&later, &first] {
        store.set_build(build).await.unwrap();
    }
    assert_eq!(store.builds().await.unwrap(), [first.clone(), later.clone()]);
    let done = BuildRecord { changed_at_ms: 9, told: serde_json::json!({"status": "ready"}), ..first };
    store.set_build(&BuildRecord { owner: "eve".into(), created_at_ms: 7, ..done.clone() }).await.unwrap();
    assert_eq!(store.builds().await.unwrap(), [done, later.clone()], "whose it is, and since when, stays");
    store.remove_build("b").await.unwrap();
    store.remove_build("b").await.unwrap();
    assert_eq!(store.builds().await.unwrap(), [later]);
}

async fn keeps_webhooks(store: &dyn Store) {
    let record = |id: &str, owner: &str, created_at_ms: i64| WebhookRecord {
        id: id.into(),
        owner: owner.into(),
        name: "mine".into(),
        url: "https://example.com/".into(),
        is_enabled: true,
        kinds: vec!["created".into(), "killed".into()],
        secret: Hidden("hush".into()),
        failing_since_ms: None,
        why: None,
        created_at_ms,
    };
    for (id, owner, at) in [("b", "ada", 1), ("a", "ada", 2), ("c", "eve", 1)] {
        store.add_webhook(&record(id, owner, at)).await.unwrap();
    }
    assert!(store.add_webhook(&record("a", "eve", 9)).await.is_err(), "an id is one webhook's");
    assert_eq!(store.webhooks("ada").await.unwrap(), [record("b", "ada", 1), record("a", "ada", 2)]);
    assert_eq!(store.webhook("c").await.unwrap(), Some(record("c", "eve", 1)));
    store.note_webhook("a", true, Some(7), Some("it failed")).await.unwrap();
    let failing = WebhookRecord { failing_since_ms: Some(7), why: Some("it failed".into()), ..record("a", "ada", 2) };
    assert_eq!(store.webhook("a").await.unwrap(), Some(failing.clone()));
    store.note_webhook("a", false, Some(7), Some("it failed")).await.unwrap();
    store.note_webhook("a", true, Some(7), Some("it failed")).await.unwrap();
    let disabled = WebhookRecord { is_enabled: false, ..failing };
    assert_eq!(store.webhook("a").await.unwrap(), Some(disabled), "who has disabled it enables it");
    let other = WebhookRecord { kinds: Vec::new(), secret: Hidden("other".into()), ..record("a", "ada", 2) };
    store.set_webhook(&other).await.unwrap();
    assert_eq!(store.webhook("a").await.unwrap(), Some(other));
    store.remove_webhook("a").await.unwrap();
    store.remove_webhook("a").await.unwrap();
    assert_eq!(store.webhook("a").await.unwrap(), None);
}

async fn keeps_deliveries(store: &dyn Store) {
    let webhook = |id: &str, owner: &str, kinds: &[&str], is_enabled| WebhookRecord {
        id: id.into(),
        owner: owner.into(),
        name: String::new(),
        url: "https://example.com/".into(),
        is_enabled,
        kinds: kinds.iter().map(ToString::to_string).collect(),
        secret: Hidden("hush".into()),
        failing_since_ms: None,
        why: None,
        created_at_ms: 1,
    };
    let event = |number: u64, kind: &str| EventRecord {
        id: format!("dv{number}"),
        owner: "dora".to_owned(),
        subject: Subject::Sandbox(id(number)),
        template: "base".to_owned(),
        kind: kind.to_owned(),
        why: None,
        at_ms: 100 + i64::try_from(number).unwrap(),
    };
    for webhook in [
        webhook("all", "dora", &[], true),
        webhook("kills", "dora", &["killed"], true),
        webhook("off", "dora", &[], false),
        webhook("other", "eve", &[], true),
    ] {
        store.add_webhook(&webhook).await.unwrap();
    }
    assert_eq!(store.add_event(&event(1, "created"), 2).await.unwrap(), [""; 0]);
    assert_eq!(store.add_event(&event(2, "killed"), 2).await.unwrap(), [""; 0]);
    // Two wait for that one.
    assert_eq!(store.add_event(&event(3, "killed"), 2).await.unwrap(), ["all"]);
    let found = store.deliveries(None).await.unwrap();
    let mut of: Vec<_> = found.iter().map(|one| (one.event.id.as_str(), one.webhook.as_str())).collect();
    assert_eq!((of[0], of[3]), (("dv1", "all"), ("dv3", "kills")), "the oldest comes first");
    of.sort_unstable();
    assert_eq!(of, [("dv1", "all"), ("dv2", "all"), ("dv2", "kills"), ("dv3", "kills")]);
    let first = found[0].clone();
    assert_eq!((first.attempts, first.due_at_ms, &first.event), (0, 101, &event(1, "created")));
    store.note_delivery(&first.id, 3, 777).await.unwrap();
    let tried = DeliveryRecord { attempts: 3, due_at_ms: 777, ..first.clone() };
    assert_eq!(store.deliveries(Some("dv1")).await.unwrap(), [tried]);
    store.remove_delivery(&first.id).await.unwrap();
    store.remove_delivery(&first.id).await.unwrap();
    assert_eq!(store.deliveries(Some("dv1")).await.unwrap(), []);
    store.remove_webhook("all").await.unwrap();
    store.forget_before(103).await.unwrap();
    let left: Vec<_> = store.deliveries(None).await.unwrap().into_iter().map(|one| one.event.id).collect();
    assert_eq!(left, ["dv3"], "what was removed and what is too old takes its deliveries with it");
    store.remove_webhook("kills").await.unwrap();
}

async fn bears_many_at_once(store: &dyn Store) {
    let adds = (100..200).map(|number| async move {
        store.add_sandbox(&record(number, "many")).await.unwrap();
        store.set_status(&id(number), Status::Paused, None, false, 9).await.unwrap();
    });
    futures::future::join_all(adds).await;
    assert_eq!(all_of(store, "many").await.len(), 100);
}

async fn keeps_what_it_promises(store: &dyn Store) {
    store.check().await.unwrap();
    keeps_keys(store).await;
    keeps_sandboxes(store).await;
    gives_pages(store).await;
    keeps_snapshots(store).await;
    keeps_tags(store).await;
    keeps_requests(store).await;
    keeps_events(store).await;
    keeps_builds(store).await;
    keeps_webhooks(store).await;
    keeps_deliveries(store).await;
    bears_many_at_once(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_keeps_what_it_promises() {
    let server = match postgres::Server::start() {
        Ok(server) => server,
        Err(reason) => return println!("skipped: postgresql_keeps_what_it_promises: {reason}"),
    };
    let store = Postgres::open(&server.url()).await.unwrap();
    keeps_what_it_promises(&store).await;
    drop(store);
    let again = Postgres::open(&server.url()).await.unwrap();
    assert_eq!(all_of(&again, "many").await.len(), 100, "also for the next server");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named() {
    let error = Postgres::open("postgres://nobody@127.0.0.1:1/none").await.unwrap_err();
    assert!(error.to_string().contains("DATABASE_URL"), "{error}");
    assert!(Postgres::open("no url").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_what_it_promises() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.sqlite");
    let store = Sqlite::open(&path).await.unwrap();
    keeps_what_it_promises(&store).await;
    drop(store);
    let again = Sqlite::open(&path).await.unwrap();
    assert_eq!(all_of(&again, "many").await.len(), 100, "also for the next server");
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
