//! Many clients at once: no error, and nothing that grows.
//!
//! `WRENN_TEST_LOAD=120` has 200 clients on 20 sandboxes for that many seconds; by default there are fewer, for some seconds.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use wrenn_server::store::contract::Store as _;
use wrenn_server::store::records::{Asked, SandboxRecord, Status};
use wrenn_server::store::sqlite::Sqlite;

use common::stream::Stream;
use common::{Client, Server, can_run, data_dir, new_key, sandbox};

type Times = Arc<Mutex<BTreeMap<&'static str, Vec<Duration>>>>;

fn work(client: &Client, ids: &[String], number: usize, times: &Times, is_over: &AtomicBool) {
    let mut round = number;
    while !is_over.load(Ordering::Relaxed) {
        let id = &ids[round % ids.len()];
        let path = format!("/v1/sandboxes/{id}");
        let begun = Instant::now();
        let what = match round % 5 {
            0 | 1 => {
                // Twenty emulated guests may share two processors: that is slow, and no error.
                let exec = json!({"cmd": "/bin/sh", "args": ["-c", "echo here"], "timeout_sec": 300});
                let (status, answer) = client.post(&format!("{path}/exec"), &exec);
                assert_eq!((status, answer["stdout"].as_str()), (200, Some("here\n")), "{answer}");
                "exec"
            }
            2 => {
                let text = format!("{number} {round}");
                let form = [("path", format!("/tmp/{number}").into_bytes()), ("file", text.clone().into_bytes())];
                let form: Vec<_> = form.iter().map(|(name, value)| (*name, &value[..])).collect();
                assert_eq!(client.form(&format!("{path}/files/write"), &form).0, 204);
                assert_eq!(client.read(id, &format!("/tmp/{number}")), (200, text.into_bytes()));
                "files"
            }
            3 => {
                let said = Stream::exec(client, id, json!({"cmd": "seq", "args": ["100"]})).rest();
                assert_eq!((said.exit_code, said.stdout().lines().count()), (Some(0), 100));
                "stream"
            }
            _ => {
                assert_eq!(client.get("/v1/sandboxes").0, 200);
                "list"
            }
        };
        times.lock().unwrap().entry(what).or_default().push(begun.elapsed());
        round += 1;
    }
}

#[test]
fn many_clients_at_once_see_no_error_and_leave_nothing() {
    if !can_run("many_clients_at_once_see_no_error_and_leave_nothing") {
        return;
    }
    let asked = std::env::var("WRENN_TEST_LOAD").ok().and_then(|seconds| seconds.parse().ok());
    let (seconds, clients, sandboxes) = asked.map_or((6, 20, 3), |seconds: u64| (seconds, 200, 20));
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let ids: Vec<String> = (0..sandboxes).map(|_| sandbox(&client, &json!({"timeout_sec": 3600}))).collect();
    let (times, is_over) = (Times::default(), Arc::new(AtomicBool::new(false)));
    let workers: Vec<_> = (0..clients)
        .map(|number| {
            let (client, ids, times, is_over) = (client.clone(), ids.clone(), Arc::clone(&times), Arc::clone(&is_over));
            thread::spawn(move || work(&client, &ids, number, &times, &is_over))
        })
        .collect();
    thread::sleep(Duration::from_secs(seconds) / 3);
    let early = server.costs();
    thread::sleep(Duration::from_secs(seconds) * 2 / 3);
    let late = server.costs();
    is_over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().expect("a client saw an error");
    }
    for (what, times) in &mut *times.lock().unwrap() {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("{what}: {} in {seconds} s, p50 {:?}, p99 {:?}", times.len(), at(50), at(99));
    }
    println!("resident KiB and descriptors: {early:?} after a third, {late:?} at the end");
    assert!(late.0 < early.0 + early.0 / 4 + 8192, "memory grows: {early:?} {late:?}");
    thread::sleep(Duration::from_secs(6));
    let after = server.costs();
    println!("{after:?} afterwards");
    assert!(after.1 <= early.1, "descriptors stay: {early:?} {after:?}");
    server.stop();
}

#[test]
fn ten_thousand_records_come_page_by_page() {
    if !can_run("ten_thousand_records_come_page_by_page") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let records = dir.path().join("server/records.sqlite");
    let add = async {
        let store = Sqlite::open(&records).await.unwrap();
        for number in 0..10_000_u64 {
            let at = i64::try_from(number / 3).unwrap();
            let record = SandboxRecord {
                id: format!("sb{number:016x}").parse().unwrap(),
                owner: key[4..12].to_owned(),
                template: "base".to_owned(),
                vcpus: 1,
                memory_mib: 512,
                timeout_sec: 300,
                pauses_at_timeout: false,
                status: Status::Stopped,
                why: Some("it was killed".to_owned()),
                created_at_ms: at,
                started_at_ms: at,
                updated_at_ms: at,
                asked: Asked::default(),
            };
            store.add_sandbox(&record).await.unwrap();
        }
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(add);
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let (mut cursor, mut seen, mut slowest) = (String::new(), std::collections::BTreeSet::new(), Duration::ZERO);
    for page in 1.. {
        let begun = Instant::now();
        let (head, body) = client.head_and_body(&format!("/v1/sandboxes?limit=100{cursor}"));
        slowest = slowest.max(begun.elapsed());
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let ids: Vec<_> = body.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
        assert!(ids.iter().all(|id| seen.insert(id.clone())), "one comes twice on page {page}");
        match head.lines().find_map(|line| line.strip_prefix("x-next-cursor: ")) {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    println!("the slowest of the pages took {slowest:?}");
    assert_eq!(seen.len(), 10_000);
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    server.stop();
}
