//! A file system that stands still does not make the agent stand still.

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use hyper::StatusCode;
use support::{Agent, eventually, loop_mount::LoopMount};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};

#[tokio::test]
async fn an_upload_that_is_dropped_on_a_frozen_disk_holds_nobody_up() {
    let test = "an_upload_that_is_dropped_on_a_frozen_disk_holds_nobody_up";
    let Some(disk) = LoopMount::make(test) else { return };
    let agent = Agent::start_with(&["--drive", disk.path().to_str().unwrap()]);
    let entries = || fs::read_dir(disk.path()).unwrap().filter(|entry| is_upload(entry.as_ref().unwrap())).count();
    let mut uploads = Vec::new();
    for number in 0..4 {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        let path = disk.path().join(number.to_string());
        let head =
            format!("POST /files?path={} HTTP/1.1\r\nhost: guest\r\ncontent-length: 1000\r\n\r\n", path.display());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"half").await.unwrap();
        uploads.push(stream);
    }
    eventually("the uploads' files", || entries() == 4).await;
    assert_eq!(agent.call("POST", "/fsfreeze", &[], "").await.status(), StatusCode::NO_CONTENT);
    drop(uploads);
    // The agent has heard of it when it answers again.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    let answers = async {
        assert_eq!(agent.call("GET", "/health", &[], "").await.status(), StatusCode::NO_CONTENT);
        assert_eq!(agent.call("POST", "/fsthaw", &[], "").await.status(), StatusCode::NO_CONTENT);
    };
    let answered = timeout(Duration::from_secs(5), answers).await;
    if answered.is_err() {
        thaw(&disk);
    }
    assert!(answered.is_ok(), "no answer in {:?}", begun.elapsed());
    eventually("the removal of what was dropped", || entries() == 0).await;
}

/// More of them than the agent has threads.
#[tokio::test]
async fn uploads_that_stand_before_a_frozen_disk_do_not_keep_it_frozen() {
    let test = "uploads_that_stand_before_a_frozen_disk_do_not_keep_it_frozen";
    let Some(disk) = LoopMount::make(test) else { return };
    let agent = Agent::start_with(&["--drive", disk.path().to_str().unwrap()]);
    let mut uploads = Vec::new();
    for number in 0..20 {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        let path = disk.path().join(number.to_string());
        let head =
            format!("POST /files?path={} HTTP/1.1\r\nhost: guest\r\ncontent-length: 600000\r\n\r\n", path.display());
        stream.write_all(head.as_bytes()).await.unwrap();
        uploads.push(stream);
    }
    let entries = || fs::read_dir(disk.path()).unwrap().filter(|entry| is_upload(entry.as_ref().unwrap())).count();
    eventually("the uploads' files", || entries() == 20).await;
    assert_eq!(agent.call("POST", "/fsfreeze", &[], "").await.status(), StatusCode::NO_CONTENT);
    for stream in &mut uploads {
        // Their writes stand.
        stream.write_all(&vec![b'x'; 600_000]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let thawed = timeout(Duration::from_secs(5), agent.call("POST", "/fsthaw", &[], "")).await;
    if thawed.is_err() {
        thaw(&disk);
    }
    assert_eq!(thawed.expect("an answer within 5 s").status(), StatusCode::NO_CONTENT);
    eventually("the end of the uploads", || (0..20).all(|number| disk.path().join(number.to_string()).exists())).await;
}

fn is_upload(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_str().is_some_and(|name| name.starts_with(".wrenn-upload-"))
}

/// So that a test that fails can be cleaned up after.
fn thaw(disk: &LoopMount) {
    let _ = std::process::Command::new("fsfreeze").arg("--unfreeze").arg(disk.path()).status();
}
