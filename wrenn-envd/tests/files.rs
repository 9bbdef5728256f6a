//! A file goes in and comes out whole, or not at all.

mod support;

use std::{
    fs::Permissions,
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    time::Duration,
};

use hyper::{StatusCode, body::Bytes};
use support::{Agent, eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

fn binary(length: u32) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).expect("eight bits")).collect()
}

fn message(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).expect("JSON");
    body["message"].as_str().expect("a message").to_owned()
}

#[tokio::test]
async fn five_mebibytes_come_back_as_they_went() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/and deep/a+b.bin");
    let route =
        format!("/files?path={}&username=root", path.display().to_string().replace(' ', "%20").replace('+', "%2B"));
    let contents = binary(5 << 20);
    let answer = agent.call("POST", &route, &[OCTETS], contents.clone()).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let written: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(written[0]["name"], "a+b.bin");
    assert_eq!(written[0]["type"], "file");
    let answer = agent.call("GET", &route, &[], "").await;
    assert_eq!(answer.headers()["content-length"], contents.len().to_string());
    assert!(answer.body() == &contents);

    let answer = agent.call("POST", &route, &[OCTETS], "short").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(std::fs::read(&path).unwrap(), b"short");
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
}

#[tokio::test]
async fn multipart_takes_its_path_from_the_query_or_the_part() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    let part = |name: &str, contents: &str| {
        format!("--xyz\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{contents}\r\n")
    };
    let kind = ("content-type", "multipart/form-data; boundary=xyz");
    let body = part(&one.display().to_string(), "1") + &part(&two.display().to_string(), "2") + "--xyz--\r\n";
    let answer = agent.call("POST", "/files", &[kind], body).await;
    assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.body());
    assert_eq!((std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap()), (b"1".to_vec(), b"2".to_vec()));

    let route = format!("/files?path={}", one.display());
    let answer = agent.call("POST", &route, &[kind], part("elsewhere", "3") + "--xyz--\r\n").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(std::fs::read(&one).unwrap(), b"3");

    let cut = agent.call("POST", &route, &[kind], part("x", "4")).await;
    assert_eq!(cut.status(), StatusCode::BAD_REQUEST);
}

/// The path may come after the file, as form libraries order it: an empty file must not be the result.
#[tokio::test]
async fn the_order_of_the_parts_does_not_matter() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let kind = ("content-type", "multipart/form-data; boundary=xyz");
    let path = directory.path().join("sub/place");
    let file = "--xyz\r\ncontent-disposition: form-data; name=\"file\"; filename=\"x.txt\"\r\n\r\ncontents\r\n";
    let named = format!("--xyz\r\ncontent-disposition: form-data; name=\"path\"\r\n\r\n{}\r\n", path.display());
    for body in [format!("{file}{named}--xyz--\r\n"), format!("{named}{file}--xyz--\r\n")] {
        let answer = agent.call("POST", "/files", &[kind], body).await;
        assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.body());
        let written: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(written[0]["path"], path.display().to_string());
        assert_eq!(std::fs::read(&path).unwrap(), b"contents");
        std::fs::remove_dir_all(directory.path().join("sub")).unwrap();
    }
    let two = agent.call("POST", "/files", &[kind], format!("{file}{file}{named}--xyz--\r\n")).await;
    assert_eq!(two.status(), StatusCode::BAD_REQUEST);
    assert!(message(two.body()).contains("two files"));
    let none = agent.call("POST", "/files", &[kind], format!("{named}--xyz--\r\n")).await;
    assert_eq!(none.status(), StatusCode::BAD_REQUEST);
    let cut = agent.call("POST", "/files", &[kind], format!("{file}{named}")).await;
    assert_eq!(cut.status(), StatusCode::BAD_REQUEST);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left of what failed");
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let circle = directory.path().join("circle");
    std::os::unix::fs::symlink("circle", &circle).unwrap();
    let answer = agent.call("GET", &format!("/files?path={}", missing.display()), &[], "").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(message(answer.body()).contains("missing"));
    let paths = [&fifo, &circle, directory.path()].map(|path| path.display().to_string());
    for path in ["/dev/zero", "/dev", "/", "/tmp/a%00b", "~ghost/x", &paths[0], &paths[1], &paths[2]] {
        for (method, body) in [("GET", ""), ("POST", "x")] {
            let answer = agent.call(method, &format!("/files?path={path}"), &[OCTETS], body).await;
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{method} {path}");
        }
    }
    assert_eq!(agent.call("GET", "/files", &[], "").await.status(), StatusCode::BAD_REQUEST);
    let answer = agent.call("GET", "/files?path=/etc/passwd&username=ghost", &[], "").await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert!(message(answer.body()).contains("ghost"));
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut");
    let entries = || std::fs::read_dir(directory.path()).unwrap().count();
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    let head =
        format!("POST /files?path={} HTTP/1.1\r\nhost: guest\r\ncontent-length: 1000000\r\n\r\n", path.display());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&binary(1000)).await.unwrap();
    eventually("the temporary file", || entries() == 1).await;
    assert!(!path.exists());
    drop(stream);
    eventually("its removal", || entries() == 0).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(entries(), 0);
}

#[tokio::test]
async fn a_truncated_body_leaves_the_old_file() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kept");
    std::fs::write(&path, "old").unwrap();
    for encoding in ["content-length: 1000000\r\n\r\nnew", "transfer-encoding: chunked\r\n\r\n3\r\nnew\r\n"] {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        let head = format!("POST /files?path={} HTTP/1.1\r\nhost: guest\r\n{encoding}", path.display());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

fn gzip(contents: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(contents).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

#[tokio::test]
async fn gzip_is_undone_on_the_way_in_and_done_on_the_way_out() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let route = format!("/files?path={}", path.display());
    let contents = [binary(300_000), vec![0; 300_000], binary(10)].concat();
    let packed = gzip(&contents);
    let encoding = ("content-encoding", "gzip");
    let answer = agent.call("POST", &route, &[OCTETS, encoding], packed.clone()).await;
    assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.body());
    assert!(std::fs::read(&path).unwrap() == contents);

    let answer = agent.call("GET", &route, &[("accept-encoding", "br, gzip")], "").await;
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(answer.body().as_ref()).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == contents);
    let answer = agent.call("GET", &route, &[("accept-encoding", "identity;q=0")], "").await;
    assert_eq!(answer.status(), StatusCode::NOT_ACCEPTABLE);

    for broken in [&packed[..packed.len() - 1], &packed[..200], b"no gzip at all", &[&packed[..], b"x"].concat()] {
        let answer = agent.call("POST", &route, &[OCTETS, encoding], broken.to_vec()).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{:?}", answer.body());
        assert!(std::fs::read(&path).unwrap() == contents, "the old file stays");
    }
    let answer = agent.call("POST", &route, &[OCTETS, ("content-encoding", "br")], "x").await;
    assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);

    let part = "--xyz\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\npart\r\n--xyz--\r\n";
    let kind = ("content-type", "multipart/form-data; boundary=xyz");
    let answer = agent.call("POST", &route, &[kind, encoding], gzip(part.as_bytes())).await;
    assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.body());
    assert_eq!(std::fs::read(&path).unwrap(), b"part");
}

#[tokio::test]
async fn a_replaced_file_keeps_its_owner_its_mode_and_its_links() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("script"), "old").unwrap();
    std::fs::set_permissions(at("script"), Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink("script", at("link")).unwrap();
    std::os::unix::fs::symlink("new", at("dangling")).unwrap();
    if is_root() {
        std::os::unix::fs::chown(at("script"), Some(1234), Some(5678)).unwrap();
    }
    for (name, place) in [("link", "script"), ("dangling", "new")] {
        let answer = agent.call("POST", &format!("/files?path={}", at(name).display()), &[OCTETS], "new").await;
        assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.body());
        assert!(at(name).is_symlink());
        assert_eq!(std::fs::read(at(place)).unwrap(), b"new");
    }
    let found = std::fs::metadata(at("script")).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o750);
    assert_eq!(std::fs::metadata(at("new")).unwrap().mode() & 0o7777, 0o644);
    if is_root() {
        assert_eq!((found.uid(), found.gid()), (1234, 5678));
    }
}

#[tokio::test]
async fn a_user_reads_and_writes_what_the_user_may() {
    if !is_root() {
        println!("skipped: a_user_reads_and_writes_what_the_user_may: no root");
        return;
    }
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    for (name, mode) in [("secret", 0o600), ("public", 0o644), ("shared", 0o666)] {
        std::fs::write(at(name), name).unwrap();
        std::fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    }
    let route = |name: &str| format!("/files?path={}&username=nobody", at(name).display());
    for (method, name, status) in [
        ("GET", "secret", StatusCode::FORBIDDEN),
        ("GET", "public", StatusCode::OK),
        ("POST", "secret", StatusCode::FORBIDDEN),
        ("POST", "public", StatusCode::FORBIDDEN),
        ("POST", "shared", StatusCode::OK),
        ("POST", "new/file", StatusCode::OK),
    ] {
        let answer = agent.call(method, &route(name), &[OCTETS], "x").await;
        assert_eq!(answer.status(), status, "{method} {name}: {:?}", answer.body());
    }
    let owner = |name: &str| std::fs::metadata(at(name)).unwrap().uid();
    assert_eq!((owner("shared"), std::fs::read(at("shared")).unwrap()), (0, b"x".to_vec()));
    assert!(owner("new") != 0 && owner("new/file") == owner("new"));
    assert_eq!(std::fs::read(at("public")).unwrap(), b"public");
}

#[tokio::test]
async fn a_full_disk_is_said_and_the_old_file_stays() {
    if !is_root() {
        println!("skipped: a_full_disk_is_said_and_the_old_file_stays: no root");
        return;
    }
    let agent = Agent::start();
    let disk = SmallDisk::mount();
    let path = disk.0.path().join("file");
    std::fs::write(&path, "old").unwrap();
    let route = format!("/files?path={}", path.display());
    let contents = binary(3 << 20);
    let part = "--xyz\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\n";
    let parts = [part.as_bytes(), &contents, b"\r\n--xyz--\r\n"].concat();
    let kind = ("content-type", "multipart/form-data; boundary=xyz");
    for (kind, body) in [(OCTETS, contents), (kind, parts)] {
        let answer = agent.call("POST", &route, &[kind], body).await;
        assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE, "{:?}", answer.body());
        assert!(message(answer.body()).contains("file"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(disk.0.path()).unwrap().count(), 1, "nothing takes up room");
    }
    // Zeros take none.
    let answer = agent.call("POST", &route, &[OCTETS], vec![0; 3 << 20]).await;
    assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.body());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 << 20);
}

/// One mebibyte of disk, which goes with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), directory.path(), Some("tmpfs"), flags, Some("size=1m")).expect("root mounts");
        Self(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn composed_files_are_one_and_their_sources_go() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let compose = |sources: &[&str], destination: &str| {
        let sources: Vec<String> = sources.iter().map(|name| at(name)).collect();
        serde_json::json!({ "source_paths": sources, "destination": destination }).to_string()
    };
    let json = ("content-type", "application/json");
    std::fs::write(at("a"), binary(400_000)).unwrap();
    std::fs::write(at("b"), "tail").unwrap();
    std::fs::write(at("whole"), "old").unwrap();
    for (body, status) in [
        (compose(&["a", "missing"], &at("whole")), StatusCode::NOT_FOUND),
        (compose(&["a", "whole"], &at("whole")), StatusCode::BAD_REQUEST),
        (compose(&["a", "."], &at("whole")), StatusCode::BAD_REQUEST),
        (compose(&[], &at("whole")), StatusCode::BAD_REQUEST),
        (compose(&["a"], ""), StatusCode::BAD_REQUEST),
        ("{".to_owned(), StatusCode::BAD_REQUEST),
    ] {
        let answer = agent.call("POST", "/files/compose", &[json], body).await;
        assert_eq!(answer.status(), status, "{:?}", answer.body());
    }
    assert_eq!(std::fs::read(at("whole")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3, "what failed leaves all as it was");

    let answer = agent.call("POST", "/files/compose", &[json], compose(&["a", "b"], &at("whole"))).await;
    assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.body());
    let written: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!((&written["name"], &written["type"]), (&"whole".into(), &"file".into()));
    assert!(std::fs::read(at("whole")).unwrap() == [binary(400_000), b"tail".to_vec()].concat());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn metadata_stays_with_the_file_until_the_next_upload() {
    let agent = Agent::start();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if rustix::fs::setxattr(directory.path(), "user.test", b"", rustix::fs::XattrFlags::empty()).is_err() {
        println!("skipped: metadata_stays_with_the_file_until_the_next_upload: no extended attributes on this disk");
        return;
    }
    let path = directory.path().join("file");
    let route = format!("/files?path={}", path.display());
    let headers = [OCTETS, ("X-Metadata-Author", "A. U. Thor"), ("x-metadata-purpose", "test")];
    let answer = agent.call("POST", &route, &headers, "x").await;
    assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.body());
    let metadata = serde_json::json!({"author": "A. U. Thor", "purpose": "test"});
    let written: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(written[0]["metadata"], metadata);
    let told = async || {
        let body = serde_json::json!({ "path": path }).to_string();
        let json = ("content-type", "application/json");
        let answer = agent.call("POST", "/filesystem.Filesystem/Stat", &[json], body).await;
        let told: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        told["entry"]["metadata"].clone()
    };
    assert_eq!(told().await, metadata);
    agent.call("POST", &route, &[OCTETS], "x").await;
    assert_eq!(told().await, serde_json::Value::Null);
    let answer = agent.call("POST", &route, &[OCTETS, ("x-metadata-big", &"v".repeat(70_000))], "x").await;
    assert!(answer.status().is_client_error(), "{answer:?}");
}

#[tokio::test]
async fn a_large_file_passes_in_constant_memory() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large");
    let route = format!("/files?path={}", path.display());
    let contents = Bytes::from(binary(96 << 20));
    for kind in [OCTETS, ("content-type", "multipart/form-data; boundary=xyz")] {
        let body = match kind {
            OCTETS => contents.clone(),
            _ => {
                let head = b"--xyz\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\n";
                [&head[..], &contents, b"\r\n--xyz--\r\n"].concat().into()
            }
        };
        let answer = agent.call("POST", &route, &[kind], body).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(std::fs::read(&path).unwrap() == contents);
    }
    let answer = agent.call("GET", &route, &[], "").await;
    assert!(answer.body() == &contents);
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak_kib < 32 << 10, "{peak_kib} KiB");
}

fn signed(route: &str, text: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
    use sha2::Digest as _;
    let signature = STANDARD_NO_PAD.encode(sha2::Sha256::digest(text));
    format!("{route}&signature=v1_{}", signature.replace('+', "%2B").replace('/', "%2F"))
}

#[tokio::test]
async fn a_signature_stands_in_for_the_token_for_its_path_its_use_and_its_time() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file").display().to_string();
    agent.call("POST", "/init", &[("content-type", "application/json")], r#"{"accessToken":"token"}"#).await;
    let route = format!("/files?path={path}");
    let (past, future) = (1_000_000_000, 4_000_000_000_u64);
    let with = |name: &str, value: &dyn std::fmt::Display| format!("{route}&{name}={value}");
    let ok = StatusCode::OK;
    let refused = StatusCode::UNAUTHORIZED;
    for (method, route, status) in [
        ("POST", signed(&route, &format!("{path}:write::token")), ok),
        ("GET", signed(&route, &format!("{path}:read::token")), ok),
        ("GET", signed(&with("username", &"root"), &format!("{path}:read:root:token")), ok),
        ("GET", signed(&with("signature_expiration", &future), &format!("{path}:read::token:{future}")), ok),
        ("GET", signed(&with("signature_expiration", &past), &format!("{path}:read::token:{past}")), refused),
        ("GET", signed(&with("signature_expiration", &future), &format!("{path}:read::token")), refused),
        ("GET", signed(&route, &format!("{path}:read::token:{future}")), refused),
        ("GET", signed(&route, &format!("{path}:write::token")), refused),
        ("POST", signed(&route, &format!("{path}:read::token")), refused),
        ("GET", signed(&with("username", &"root"), &format!("{path}:read::token")), refused),
        ("GET", signed(&route, &format!("{path}x:read::token")), refused),
        ("GET", signed(&route, &format!("{path}:read::guess")), refused),
        ("GET", format!("{route}&signature=v1_"), refused),
        ("GET", format!("{route}&signature=v1_&signature_expiration=soon"), StatusCode::BAD_REQUEST),
        ("GET", route.clone(), refused),
    ] {
        let answer = agent.call(method, &route, &[OCTETS], "x").await;
        assert_eq!(answer.status(), status, "{method} {route} {:?}", answer.body());
    }
    // A wrong token is not made good by a signature, and compose knows none.
    let good = signed(&route, &format!("{path}:read::token"));
    assert_eq!(agent.call("GET", &good, &[("x-access-token", "wrong")], "").await.status(), refused);
    assert_eq!(agent.call("GET", &route, &[("x-access-token", "token")], "").await.status(), ok);
    let compose = signed(&format!("/files/compose?path={path}"), &format!("{path}:write::token"));
    assert_eq!(agent.call("POST", &compose, &[], "{}").await.status(), refused);
}

/// Bodies that are nearly right: each is taken or refused, and the agent lives on.
#[tokio::test]
async fn no_body_brings_the_agent_down() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let route = format!("/files?path={}", directory.path().join("file").display());
    let parts = b"--xyz\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc\r\n\
        --xyz\r\ncontent-disposition: form-data; name=\"path\"\r\n\r\n/x\r\n--xyz--\r\n";
    let packed = gzip(&binary(5000));
    let kinds = [
        (("content-type", "multipart/form-data; boundary=xyz"), ("x-nothing", "")),
        (OCTETS, ("content-encoding", "gzip")),
    ];
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |bound: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % bound as u64).unwrap()
    };
    let mut statuses = std::collections::BTreeMap::new();
    for round in 0..600 {
        let (kind, mut body) = if round % 2 == 0 { (&kinds[0], parts.to_vec()) } else { (&kinds[1], packed.clone()) };
        for _ in 0..=next(4) {
            let at = next(body.len());
            match next(4) {
                0 => body[at] = u8::try_from(next(256)).unwrap(),
                1 => drop(body.drain(at..(at + next(20)).min(body.len()))),
                2 => body.insert(at, b"\r\n-x"[next(4)]),
                _ => body.truncate(at.max(1)),
            }
            body.push(b'.');
        }
        let status = agent.call("POST", &route, &[kind.0, kind.1], body).await.status();
        *statuses.entry(status.as_u16()).or_insert(0) += 1;
    }
    assert!(statuses.keys().all(|status| [200, 400].contains(status)), "{statuses:?}");
    assert!(statuses[&400] > 100, "{statuses:?}");
    // A head that never ends is not kept for ever.
    let endless = [&b"--xyz\r\ncontent-disposition: "[..], &vec![b'a'; 8 << 20]].concat();
    assert_eq!(agent.call("POST", &route, &[kinds[0].0], endless).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(agent.call("GET", "/health", &[], "").await.status(), StatusCode::NO_CONTENT);
    let left = std::fs::read_dir(directory.path()).unwrap().count();
    assert!(left <= 1, "{left} files");
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
