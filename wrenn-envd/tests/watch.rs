//! A watch tells of every change below its directory, or says that it could not.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use connectrpc::{
    CodecFormat, ConnectError, ErrorCode, Protocol,
    client::{ClientConfig, HttpClient},
};
use support::{Agent, eventually};
use tokio::sync::mpsc;
use wrenn_envd::proto::filesystem::{
    CreateWatcherRequest, EventType, FilesystemClient, FilesystemEvent, GetWatcherEventsRequest, RemoveWatcherRequest,
    WatchDirRequest, WatchDirResponse, watch_dir_response::Event,
};

type Client = FilesystemClient<HttpClient>;

const CREATE: EventType = EventType::EVENT_TYPE_CREATE;
const WRITE: EventType = EventType::EVENT_TYPE_WRITE;
const REMOVE: EventType = EventType::EVENT_TYPE_REMOVE;
const RENAME: EventType = EventType::EVENT_TYPE_RENAME;
const CHMOD: EventType = EventType::EVENT_TYPE_CHMOD;

fn client(agent: &Agent, protocol: Protocol, format: CodecFormat) -> Client {
    let base = format!("http://{}", agent.address).parse().expect("a URI");
    let config = ClientConfig::new(base).with_protocol(protocol).with_codec_format(format);
    FilesystemClient::new(HttpClient::plaintext_http2_only(), config)
}

fn usual_client(agent: &Agent) -> Client {
    client(agent, Protocol::Connect, CodecFormat::Proto)
}

/// A stream of events that has begun. It ends with `None`, or with an error.
struct Watching {
    events: mpsc::Receiver<Result<FilesystemEvent, ConnectError>>,
    task: tokio::task::JoinHandle<()>,
}

impl Watching {
    async fn start(client: Client, request: WatchDirRequest) -> Result<Self, ConnectError> {
        let mut stream = client.watch_dir(request).await?;
        let (sender, events) = mpsc::channel(100_000);
        let (begun, begin) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut begun = Some(begun);
            loop {
                let message = match stream.message::<WatchDirResponse>().await {
                    Ok(Some(message)) => message.to_owned_message(),
                    Ok(None) => return,
                    Err(error) => return drop(sender.send(Err(error)).await),
                };
                match message.event.expect("an event") {
                    Event::Start(_) => drop(begun.take().expect("one start").send(())),
                    Event::Filesystem(event) => drop(sender.send(Ok(*event)).await),
                    Event::Keepalive(_) => {}
                }
            }
        });
        begin.await.expect("the start comes first");
        Ok(Self { events, task })
    }

    async fn next(&mut self) -> Option<FilesystemEvent> {
        let next = tokio::time::timeout(Duration::from_secs(5), self.events.recv()).await;
        next.expect("an event within 5 s").map(|event| event.expect("no error"))
    }

    /// The events up to the one of `name` and `kind`, which is the last one.
    async fn until(&mut self, name: &str, kind: EventType) -> Vec<(String, EventType)> {
        let mut seen = Vec::new();
        loop {
            let Some(event) = self.next().await else { panic!("the end came instead of {name:?}: {seen:?}") };
            let told = (event.name, event.r#type.as_known().expect("a known type"));
            seen.push(told.clone());
            if told == (name.to_owned(), kind) {
                return seen;
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn request(path: &Path, recursive: bool) -> WatchDirRequest {
    WatchDirRequest { path: path.to_str().expect("UTF-8").to_owned(), recursive, ..Default::default() }
}

fn told(events: &[(&str, EventType)]) -> Vec<(String, EventType)> {
    events.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
}

#[tokio::test]
async fn changes_are_told_in_order_in_each_protocol() {
    let agent = Agent::start();
    for (protocol, format) in [
        (Protocol::Connect, CodecFormat::Json),
        (Protocol::Connect, CodecFormat::Proto),
        (Protocol::Grpc, CodecFormat::Proto),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("below")).unwrap();
        let client = client(&agent, protocol, format);
        let mut watching = Watching::start(client, request(directory.path(), false)).await.unwrap();
        fs::write(at("ü"), "x").unwrap();
        fs::set_permissions(at("ü"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        fs::write(at("below/unseen"), "x").unwrap();
        fs::rename(at("ü"), at("v")).unwrap();
        fs::remove_file(at("v")).unwrap();
        let seen = watching.until("v", REMOVE).await;
        let expected = [("ü", CREATE), ("ü", WRITE), ("ü", CHMOD), ("ü", RENAME), ("v", CREATE), ("v", REMOVE)];
        assert_eq!(seen, told(&expected));
    }
}

#[tokio::test]
async fn nothing_in_a_new_directory_is_missed_and_nothing_is_told_twice() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let mut watching = Watching::start(usual_client(&agent), request(directory.path(), true)).await.unwrap();
    let mut expected = BTreeMap::new();
    for round in 0..50 {
        let mut path = PathBuf::new();
        for level in ["a", "b", "c"] {
            path.push(format!("{level}{round}"));
            expected.insert(path.to_str().unwrap().to_owned(), 1);
        }
        fs::create_dir_all(directory.path().join(&path)).unwrap();
        for file in 0..20 {
            let file = path.join(file.to_string());
            fs::write(directory.path().join(&file), "x").unwrap();
            expected.insert(file.to_str().unwrap().to_owned(), 1);
        }
    }
    fs::write(directory.path().join("last"), "").unwrap();
    let seen = watching.until("last", CREATE).await;
    expected.insert("last".to_owned(), 1);
    let mut created = BTreeMap::new();
    for (name, _) in seen.iter().filter(|(_, kind)| *kind == CREATE) {
        *created.entry(name.clone()).or_insert(0) += 1;
    }
    // The tail of the last directories may still be on its way.
    while created.len() < expected.len() {
        let event = watching.next().await.unwrap();
        if event.r#type == CREATE {
            *created.entry(event.name).or_insert(0) += 1;
        }
    }
    assert_eq!(created, expected);
}

#[tokio::test]
async fn a_renamed_directory_stays_watched_under_its_new_name() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("old/deep")).unwrap();
    fs::create_dir_all(elsewhere.path().join("in/deep")).unwrap();
    fs::write(elsewhere.path().join("in/deep/file"), "x").unwrap();
    let mut watching = Watching::start(usual_client(&agent), request(directory.path(), true)).await.unwrap();

    fs::rename(at("old"), at("new")).unwrap();
    fs::write(at("new/deep/file"), "").unwrap();
    let expected = [("old", RENAME), ("new", CREATE), ("new/deep/file", CREATE)];
    assert_eq!(watching.until("new/deep/file", CREATE).await, told(&expected));

    // A new directory of the old name is another directory.
    fs::create_dir(at("old")).unwrap();
    fs::write(at("old/file"), "").unwrap();
    assert_eq!(watching.until("old/file", CREATE).await, told(&[("old", CREATE), ("old/file", CREATE)]));

    // What leaves is no longer seen, not even under its former name.
    fs::rename(at("new"), elsewhere.path().join("out")).unwrap();
    assert_eq!(watching.until("new", RENAME).await.len(), 1);
    tokio::time::sleep(Duration::from_millis(100)).await;
    fs::write(elsewhere.path().join("out/deep/unseen"), "").unwrap();

    // What comes in is told with all that is in it.
    fs::rename(elsewhere.path().join("in"), at("in")).unwrap();
    let seen = watching.until("in/deep/file", WRITE).await;
    assert_eq!(seen, told(&[("in", CREATE), ("in/deep", CREATE), ("in/deep/file", CREATE), ("in/deep/file", WRITE)]));
    fs::remove_file(at("in/deep/file")).unwrap();
    watching.until("in/deep/file", REMOVE).await;
}

#[tokio::test]
async fn an_upload_looks_like_any_other_write() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let mut watching = Watching::start(usual_client(&agent), request(directory.path(), true)).await.unwrap();
    let octets = ("content-type", "application/octet-stream");
    for contents in ["one", "two"] {
        let route = format!("/files?path={}/sub/file", directory.path().display());
        assert_eq!(agent.call("POST", &route, &[octets], contents).await.status(), 200);
    }
    let mut seen = watching.until("sub/file", WRITE).await;
    seen.extend(watching.until("sub/file", WRITE).await);
    let expected = [("sub", CREATE), ("sub/file", CREATE), ("sub/file", WRITE), ("sub/file", WRITE)];
    let kept: Vec<_> = seen.into_iter().filter(|(_, kind)| *kind != CHMOD).collect();
    assert_eq!(kept, told(&expected));
}

#[tokio::test]
async fn entries_come_with_events_when_they_are_asked_for() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let request = WatchDirRequest { include_entry: true, ..request(directory.path(), false) };
    let mut watching = Watching::start(usual_client(&agent), request).await.unwrap();
    let path = directory.path().join("file");
    // It comes whole: one that is written here would be empty at first.
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::write(elsewhere.path(), "four").unwrap();
    fs::rename(elsewhere.path(), &path).unwrap();
    let event = watching.next().await.unwrap();
    let entry = event.entry.into_option().unwrap();
    assert_eq!((entry.path.as_str(), entry.size), (path.to_str().unwrap(), 4));
    fs::remove_file(&path).unwrap();
    loop {
        let event = watching.next().await.unwrap();
        if event.r#type == REMOVE {
            return assert!(event.entry.into_option().is_none());
        }
    }
}

#[tokio::test]
async fn the_end_of_the_directory_ends_the_watch() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let watched = directory.path().join("watched");
    fs::create_dir(&watched).unwrap();
    let client = usual_client(&agent);
    let mut watching = Watching::start(client.clone(), request(&watched, true)).await.unwrap();
    let id = create(&client, &watched).await.unwrap();
    fs::remove_dir(&watched).unwrap();
    assert_eq!(watching.until(".", REMOVE).await, told(&[(".", REMOVE)]));
    assert!(watching.next().await.is_none());
    assert_eq!(take(&client, &id).await.unwrap(), told(&[(".", REMOVE)]));
    assert_eq!(take(&client, &id).await.unwrap_err().code, ErrorCode::NotFound);
}

async fn create(client: &Client, path: &Path) -> Result<String, ConnectError> {
    let WatchDirRequest { path, recursive, .. } = request(path, true);
    let answer = client.create_watcher(CreateWatcherRequest { path, recursive, ..Default::default() }).await?;
    Ok(answer.into_owned().watcher_id)
}

async fn take(client: &Client, id: &str) -> Result<Vec<(String, EventType)>, ConnectError> {
    let request = GetWatcherEventsRequest { watcher_id: id.to_owned(), ..Default::default() };
    let events = client.get_watcher_events(request).await?.into_owned().events;
    Ok(events.into_iter().map(|event| (event.name, event.r#type.as_known().expect("a known type"))).collect())
}

#[tokio::test]
async fn a_watcher_that_is_asked_too_seldom_says_so_and_goes_on() {
    let agent = Agent::start();
    let client = usual_client(&agent);
    let directory = tempfile::tempdir().unwrap();
    let id = create(&client, directory.path()).await.unwrap();
    let queue: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let file = directory.path().join("file");
    for _ in 0..queue / 2 + 8192 {
        fs::write(&file, "").unwrap();
        fs::remove_file(&file).unwrap();
    }
    let (mut told, mut losses) = (0, 0);
    for _ in 0..200 {
        match take(&client, &id).await {
            Ok(events) => told += events.len(),
            Err(error) => {
                assert_eq!(error.code, ErrorCode::DataLoss);
                losses += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(told >= 4096 && losses == 1, "{told} events, {losses} losses");
    fs::create_dir_all(directory.path().join("new/deep")).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(take(&client, &id).await.unwrap().contains(&("new/deep".to_owned(), CREATE)));
}

#[tokio::test]
async fn a_watch_ends_with_its_client() {
    let agent = Agent::start();
    let client = usual_client(&agent);
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // One for each directory, by the kernel's own account.
    let watches = || {
        let entries = fs::read_dir(format!("/proc/{}/fdinfo", agent.pid())).unwrap();
        let infos = entries.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
        infos.map(|info| info.lines().filter(|line| line.starts_with("inotify wd:")).count()).sum::<usize>()
    };
    let watching = Watching::start(client.clone(), request(directory.path(), true)).await.unwrap();
    let id = create(&client, other.path()).await.unwrap();
    assert_eq!(watches(), 2);
    drop(watching);
    eventually("the end of the stream's watch", || watches() == 1).await;
    client.remove_watcher(RemoveWatcherRequest { watcher_id: id.clone(), ..Default::default() }).await.unwrap();
    eventually("the end of the watcher's watch", || watches() == 0).await;
    assert_eq!(take(&client, &id).await.unwrap_err().code, ErrorCode::NotFound);
    let request = RemoveWatcherRequest { watcher_id: id, ..Default::default() };
    assert_eq!(client.remove_watcher(request).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused() {
    let agent = Agent::start();
    let client = usual_client(&agent);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, code) in [(file, ErrorCode::InvalidArgument), (directory.path().join("missing"), ErrorCode::NotFound)] {
        assert_eq!(create(&client, &path).await.unwrap_err().code, code);
        let mut stream = client.watch_dir(request(&path, false)).await;
        let error = match &mut stream {
            Ok(stream) => stream.message::<WatchDirResponse>().await.map(drop).unwrap_err(),
            Err(error) => error.clone(),
        };
        assert_eq!(error.code, code);
    }
}
