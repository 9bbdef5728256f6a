//! A download holds what a program of the guest would read, and ends.

mod support;

use std::fs;

use hyper::StatusCode;
use support::Agent;

#[tokio::test]
async fn a_file_of_the_kernels_comes_whole_whatever_length_it_claims() {
    let agent = Agent::start();
    // They claim 4,096 bytes, and none, and hold more and less.
    for path in [
        "/sys/devices/system/cpu/online",
        "/sys/class/net/lo/address",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/proc/version",
        "/proc/sys/kernel/ostype",
        "/proc/kallsyms",
    ] {
        let Ok(expected) = fs::read(path) else {
            println!("skipped: {path} of a_file_of_the_kernels_comes_whole_whatever_length_it_claims: not there");
            continue;
        };
        let route = format!("/files?path={path}");
        let answer = agent.call("GET", &route, &[], "").await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert!(answer.body() == &expected, "{path}: {} bytes", answer.body().len());
        let answer = agent.call("GET", &route, &[("accept-encoding", "gzip")], "").await;
        let mut unpacked = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(answer.body().as_ref()), &mut unpacked).unwrap();
        assert!(unpacked == expected, "{path}, compressed: {} bytes", unpacked.len());
    }
}

#[tokio::test]
async fn a_part_of_a_short_file_is_that_part_and_an_empty_one_is_empty() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let route = format!("/files?path={}", path.display());
    fs::write(&path, "0123456789").unwrap();
    let answer = agent.call("GET", &route, &[("range", "bytes=2-4")], "").await;
    assert_eq!((answer.status(), answer.body().as_ref()), (StatusCode::PARTIAL_CONTENT, &b"234"[..]));
    assert_eq!(answer.headers()["content-range"], "bytes 2-4/10");
    let answer = agent.call("GET", &route, &[("range", "bytes=10-")], "").await;
    assert_eq!(answer.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    fs::write(&path, "").unwrap();
    for range in [&[("range", "bytes=0-")][..], &[]] {
        let answer = agent.call("GET", &route, range, "").await;
        assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, 0));
        assert_eq!(answer.headers()["content-length"], "0");
    }
}

/// Kernel files compose, too.
#[tokio::test]
async fn a_file_of_the_kernels_is_composed_whole() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let made = directory.path().join("made");
    let body = serde_json::json!({"source_paths": ["/proc/version"], "destination": made}).to_string();
    // The source cannot be removed, which is said; what was made stays.
    let answer = agent.call("POST", "/files/compose", &[("content-type", "application/json")], body).await;
    assert!(!answer.status().is_success());
    assert_eq!(fs::read(&made).unwrap(), fs::read("/proc/version").unwrap());
}

#[tokio::test]
async fn a_part_of_a_file_is_that_part() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let (path, contents) =
        (directory.path().join("file"), (0..600_000_u32).map(|at| (at % 251).to_le_bytes()[0]).collect::<Vec<u8>>());
    fs::write(&path, &contents).unwrap();
    let route = format!("/files?path={}", path.display());
    for (range, part) in [
        ("bytes=0-0", 0..1),
        ("bytes=300000-", 300_000..600_000),
        ("bytes=-7", 599_993..600_000),
        ("bytes=9-9999999", 9..600_000),
    ] {
        // A range is of the bytes themselves, whatever else is accepted.
        let answer = agent.call("GET", &route, &[("range", range), ("accept-encoding", "gzip")], "").await;
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(answer.headers()["content-range"], format!("bytes {}-{}/600000", part.start, part.end - 1));
        assert_eq!(answer.headers()["content-length"], part.len().to_string());
        assert!(answer.body() == &contents[part]);
    }
    let answer = agent.call("GET", &route, &[("range", "bytes=600000-")], "").await;
    assert_eq!(answer.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(answer.headers()["content-range"], "bytes */600000");
    let answer = agent.call("GET", &route, &[("range", "bytes=0-1,4-5")], "").await;
    assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, 600_000));
}
