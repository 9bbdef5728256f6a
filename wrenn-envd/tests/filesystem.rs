//! Entries are listed, made, moved and removed as the caller's user may, in each of the three protocols.

mod support;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use connectrpc::{
    CodecFormat, ConnectError, ErrorCode, Protocol,
    client::{CallOptions, ClientConfig, HttpClient},
};
use hyper::StatusCode;
use support::Agent;
use wrenn_envd::proto::filesystem::{
    EntryInfo, FileType, FilesystemClient, ListDirRequest, MakeDirRequest, MoveRequest, RemoveRequest, StatRequest,
};

type Client = FilesystemClient<HttpClient>;

fn client(agent: &Agent, protocol: Protocol, format: CodecFormat) -> Client {
    let base = format!("http://{}", agent.address).parse().expect("a URI");
    let config = ClientConfig::new(base).with_protocol(protocol).with_codec_format(format);
    FilesystemClient::new(HttpClient::plaintext_http2_only(), config)
}

fn usual_client(agent: &Agent) -> Client {
    client(agent, Protocol::Connect, CodecFormat::Proto)
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("UTF-8").to_owned()
}

fn as_user(name: &str) -> CallOptions {
    CallOptions::default().with_header("authorization", format!("Basic {}", STANDARD.encode(format!("{name}:"))))
}

async fn stat(client: &Client, path: impl AsRef<Path>) -> Result<EntryInfo, ConnectError> {
    let answer = client.stat(StatRequest { path: text(path), ..Default::default() }).await?;
    Ok(answer.into_owned().entry.into_option().expect("an entry"))
}

async fn make_dir(client: &Client, path: impl AsRef<Path>) -> Result<EntryInfo, ConnectError> {
    let answer = client.make_dir(MakeDirRequest { path: text(path), ..Default::default() }).await?;
    Ok(answer.into_owned().entry.into_option().expect("an entry"))
}

async fn rename(client: &Client, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<EntryInfo, ConnectError> {
    let request = MoveRequest { source: text(from), destination: text(to), ..Default::default() };
    Ok(client.r#move(request).await?.into_owned().entry.into_option().expect("an entry"))
}

async fn remove(client: &Client, path: impl AsRef<Path>) -> Result<(), ConnectError> {
    client.remove(RemoveRequest { path: text(path), ..Default::default() }).await.map(drop)
}

async fn list(client: &Client, path: impl AsRef<Path>, depth: u32) -> Result<Vec<EntryInfo>, ConnectError> {
    let answer = client.list_dir(ListDirRequest { path: text(path), depth, ..Default::default() }).await?;
    Ok(answer.into_owned().entries)
}

#[tokio::test]
async fn the_three_protocols_do_the_same() {
    let agent = Agent::start();
    for (protocol, format) in [
        (Protocol::Connect, CodecFormat::Json),
        (Protocol::Connect, CodecFormat::Proto),
        (Protocol::Grpc, CodecFormat::Proto),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let client = client(&agent, protocol, format);
        let made = make_dir(&client, at("a/b")).await.unwrap();
        assert_eq!((made.name.as_str(), made.r#type), ("b", FileType::FILE_TYPE_DIRECTORY.into()));
        fs::write(at("a/b/ü file"), "seven b").unwrap();
        fs::set_permissions(at("a/b/ü file"), fs::Permissions::from_mode(0o640)).unwrap();

        let moved = rename(&client, at("a/b/ü file"), at("c/d/new")).await.unwrap();
        assert_eq!(moved.path, text(at("c/d/new")));
        let told = stat(&client, at("c/d/new")).await.unwrap();
        assert_eq!(told, moved);
        let found = fs::metadata(at("c/d/new")).unwrap();
        assert_eq!((told.size, told.mode, told.permissions.as_str()), (7, 0o640, "-rw-r-----"));
        let modified = told.modified_time.into_option().unwrap();
        assert_eq!((modified.seconds, i64::from(modified.nanos)), (found.mtime(), found.mtime_nsec()));
        assert!(!told.is_symlink && told.symlink_target.is_none());

        remove(&client, at("c")).await.unwrap();
        assert!(!at("c").exists());
        let error = stat(&client, at("c")).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.unwrap().contains(&text(at("c"))));
    }
}

#[tokio::test]
async fn a_list_goes_as_deep_as_is_asked_and_follows_no_links() {
    let agent = Agent::start();
    let client = usual_client(&agent);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("one/two/three")).unwrap();
    fs::write(at("one/file"), "").unwrap();
    symlink("..", at("one/two/up")).unwrap();
    symlink(directory.path(), at("one/link")).unwrap();
    let names = |entries: Vec<EntryInfo>| entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>();
    for depth in [0, 1] {
        assert_eq!(names(list(&client, directory.path(), depth).await.unwrap()), ["one"]);
    }
    assert_eq!(names(list(&client, directory.path(), 2).await.unwrap()), ["one", "file", "link", "two"]);
    let all = list(&client, directory.path(), u32::MAX).await.unwrap();
    assert_eq!(names(all.clone()), ["one", "file", "link", "two", "three", "up"]);
    assert!(all.iter().all(|entry| entry.path.ends_with(&entry.name)));

    // A link that is asked for is followed, under its own name.
    let through = list(&client, at("one/link"), 1).await.unwrap();
    assert_eq!(through[0].path, text(at("one/link/one")));
    let error = list(&client, at("one/file"), 1).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert_eq!(list(&client, at("missing"), 1).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn each_mistake_has_its_code() {
    let agent = Agent::start();
    let client = usual_client(&agent);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), "kept").unwrap();
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/x"), "").unwrap();

    let code = |result: Result<EntryInfo, ConnectError>| result.unwrap_err().code;
    assert_eq!(code(make_dir(&client, directory.path()).await), ErrorCode::AlreadyExists);
    assert_eq!(code(make_dir(&client, at("file")).await), ErrorCode::InvalidArgument);
    assert_eq!(code(make_dir(&client, at("file/below")).await), ErrorCode::InvalidArgument);
    assert_eq!(code(stat(&client, at("file/below")).await), ErrorCode::NotFound);
    assert_eq!(code(stat(&client, "/tmp/a\0b").await), ErrorCode::InvalidArgument);
    assert_eq!(code(stat(&client, "~ghost/x").await), ErrorCode::InvalidArgument);
    assert_eq!(code(stat(&client, at(&"x".repeat(300))).await), ErrorCode::InvalidArgument);
    assert_eq!(code(rename(&client, at("missing"), at("made/x")).await), ErrorCode::NotFound);
    assert!(!at("made").exists(), "a move that fails makes nothing");
    assert_eq!(code(rename(&client, at("file"), at("full")).await), ErrorCode::InvalidArgument);
    assert_eq!(code(rename(&client, at("full"), at("full/within")).await), ErrorCode::InvalidArgument);
    assert_eq!(code(rename(&client, at("full"), at("file/below")).await), ErrorCode::InvalidArgument);
    for path in ["/", "/..", "/tmp/.."] {
        assert_eq!(remove(&client, path).await.unwrap_err().code, ErrorCode::InvalidArgument, "{path}");
    }
    remove(&client, at("missing")).await.unwrap();

    let request = StatRequest { path: text(at("file")), ..Default::default() };
    let error = client.stat_with_options(request, as_user("ghost")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(error.message.unwrap().contains("ghost"));
    assert_eq!(fs::read(at("file")).unwrap(), b"kept");
}

#[tokio::test]
async fn a_move_to_another_file_system_takes_all_along_or_nothing() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a_move_to_another_file_system_takes_all_along_or_nothing: no root");
        return;
    }
    let agent = Agent::start();
    let client = usual_client(&agent);
    let directory = tempfile::tempdir().unwrap();
    let (here, there) = (directory.path().join("here"), directory.path().join("there"));
    fs::create_dir_all(here.join("tree/below")).unwrap();
    fs::create_dir(&there).unwrap();
    let _disk = OtherDisk::mount(&there);
    fs::write(here.join("tree/below/file"), "contents").unwrap();
    fs::set_permissions(here.join("tree/below/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(here.join("tree/below"), Some(12), Some(34)).unwrap();
    symlink("below/file", here.join("tree/link")).unwrap();
    let modified = fs::metadata(here.join("tree/below/file")).unwrap().modified().unwrap();

    rename(&client, here.join("tree"), there.join("new/tree")).await.unwrap();
    assert!(!here.join("tree").exists());
    let moved = there.join("new/tree");
    assert_eq!(fs::read(moved.join("link")).unwrap(), b"contents");
    assert!(moved.join("link").is_symlink());
    let found = fs::metadata(moved.join("below/file")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.modified().unwrap()), (0o4751, modified));
    let below = fs::metadata(moved.join("below")).unwrap();
    assert_eq!((below.uid(), below.gid()), (12, 34));

    fs::write(here.join("large"), vec![7; 2 << 20]).unwrap();
    let error = rename(&client, here.join("large"), there.join("large")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    assert_eq!(fs::metadata(here.join("large")).unwrap().len(), 2 << 20);
    assert_eq!(fs::read_dir(&there).unwrap().count(), 1, "nothing is left of it");
}

/// One mebibyte of another disk, which goes with the test.
struct OtherDisk<'a>(&'a Path);

impl<'a> OtherDisk<'a> {
    fn mount(place: &'a Path) -> Self {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), place, Some("tmpfs"), flags, Some("size=1m")).expect("root mounts");
        Self(place)
    }
}

impl Drop for OtherDisk<'_> {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    let agent = Agent::start();
    let json = ("content-type", "application/json");
    for (headers, body, status) in [
        (json, &b"{"[..], StatusCode::BAD_REQUEST),
        (json, br#"{"path":7}"#, StatusCode::BAD_REQUEST),
        (("content-type", "application/proto"), b"\xff\xff", StatusCode::BAD_REQUEST),
        (("content-type", "text/plain"), b"x", StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ] {
        let answer = agent.call("POST", "/filesystem.Filesystem/Stat", &[headers], body).await;
        assert_eq!(answer.status(), status, "{headers:?} {body:?} {answer:?}");
    }
    let unknown = agent.call("POST", "/filesystem.Filesystem/Format", &[json], "{}").await;
    assert!([StatusCode::NOT_FOUND, StatusCode::NOT_IMPLEMENTED].contains(&unknown.status()), "{unknown:?}");
    let oversized = format!(r#"{{"path":"{}"}}"#, "x".repeat(17 << 20));
    let answer = agent.call("POST", "/filesystem.Filesystem/Stat", &[json], oversized).await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS, "{answer:?}");
    let answer = agent.call("POST", "/filesystem.Filesystem/Stat", &[json], r#"{"path":"/"}"#).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

/// `nobody` is in every users file, and owns nothing.
#[tokio::test]
async fn a_user_may_what_the_user_may_and_no_more() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a_user_may_what_the_user_may_and_no_more: no root");
        return;
    }
    let agent = Agent::start();
    let client = usual_client(&agent);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(at("closed")).unwrap();
    fs::set_permissions(at("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(at("closed/secret"), "s").unwrap();
    fs::create_dir(at("open")).unwrap();
    fs::set_permissions(at("open"), fs::Permissions::from_mode(0o777)).unwrap();

    let nobody = || as_user("nobody");
    let request = |path| StatRequest { path, ..Default::default() };
    let error = client.stat_with_options(request(text(at("closed/secret"))), nobody()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PermissionDenied);
    let request = RemoveRequest { path: text(at("closed")), ..Default::default() };
    assert_eq!(client.remove_with_options(request, nobody()).await.unwrap_err().code, ErrorCode::PermissionDenied);
    let request = MakeDirRequest { path: text(at("mine")), ..Default::default() };
    assert_eq!(client.make_dir_with_options(request, nobody()).await.unwrap_err().code, ErrorCode::PermissionDenied);
    let request = MakeDirRequest { path: text(at("open/deep/mine")), ..Default::default() };
    let made = client.make_dir_with_options(request, nobody()).await.unwrap().into_owned().entry.into_option().unwrap();
    assert_eq!(made.owner, "nobody");
    assert_ne!(fs::metadata(at("open/deep")).unwrap().uid(), 0);
    // The agent itself is root again.
    assert_eq!(stat(&client, at("closed/secret")).await.unwrap().owner, "root");
}
