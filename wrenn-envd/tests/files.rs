//! A file goes in and comes out whole, or not at all.

mod support;

use std::time::Duration;

use hyper::StatusCode;
use support::{Agent, eventually};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

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

#[tokio::test]
async fn what_is_no_regular_file_is_refused() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let answer = agent.call("GET", &format!("/files?path={}", missing.display()), &[], "").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(message(answer.body()).contains("missing"));
    for path in ["/dev/zero", "/dev", &directory.path().display().to_string()] {
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
async fn a_file_of_the_kernels_is_read_to_its_end() {
    let agent = Agent::start();
    let answer = agent.call("GET", "/files?path=/proc/version", &[], "").await;
    assert_eq!(answer.body(), &std::fs::read("/proc/version").unwrap());
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
