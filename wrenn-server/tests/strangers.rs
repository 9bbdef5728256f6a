//! Whatever strangers send, the server answers with a reason, fails at nothing, and goes on.
//!
//! `WRENN_TEST_SEED` repeats a run, `WRENN_TEST_REQUESTS` makes it longer.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use common::{Client, Server, can_run, data_dir, new_key, run, sandbox};

const SEGMENTS: [&str; 58] = [
    "v1",
    "v2",
    "v3",
    "sandboxes",
    "snapshots",
    "templates",
    "exec",
    "stream",
    "terminal",
    "pause",
    "resume",
    "fork",
    "ping",
    "files",
    "read",
    "write",
    "list",
    "mkdir",
    "remove",
    "network",
    "ports",
    "80",
    "49983",
    "99999",
    "connect",
    "timeout",
    "refreshes",
    "metrics",
    "logs",
    "events",
    "webhooks",
    "volumes",
    "secrets",
    "tags",
    "aliases",
    "builds",
    "status",
    "base",
    "healthz",
    "readyz",
    "openapi.json",
    "docs",
    "process.Process",
    "Start",
    "filesystem.Filesystem",
    "Stat",
    "init",
    "health",
    "..",
    "%2e%2e",
    "%00",
    "%ff",
    "a%2Fb",
    "",
    "*",
    "sb0000000000000000",
    "%E2%82%AC",
    "{id}",
];
const ROUTES: [&str; 43] = [
    "/v1/sandboxes",
    "/v1/sandboxes/ID",
    "/v1/sandboxes/ID/exec",
    "/v1/sandboxes/ID/exec/stream",
    "/v1/sandboxes/ID/terminal",
    "/v1/sandboxes/ID/fork",
    "/v1/sandboxes/ID/ping",
    "/v1/sandboxes/ID/files/read",
    "/v1/sandboxes/ID/files/write",
    "/v1/sandboxes/ID/files/list",
    "/v1/sandboxes/ID/files/mkdir",
    "/v1/sandboxes/ID/network",
    "/v1/sandboxes/ID/ports/80/",
    "/v1/snapshots",
    "/v1/snapshots/warm",
    "/v1/templates/warm/tags",
    "/v1/templates/warm/tags/a",
    "/v1/templates/warm/history",
    "/sandboxes",
    "/v2/sandboxes",
    "/sandboxes/ID",
    "/sandboxes/ID/connect",
    "/v2/sandboxes/ID/connect",
    "/sandboxes/ID/resume",
    "/sandboxes/ID/fork",
    "/sandboxes/ID/snapshots",
    "/sandboxes/ID/timeout",
    "/sandboxes/ID/refreshes",
    "/sandboxes/ID/network",
    "/sandboxes/ID/metrics",
    "/sandboxes/ID/logs",
    "/v2/sandboxes/ID/logs",
    "/sandboxes/metrics",
    "/snapshots",
    "/events/sandboxes",
    "/events/sandboxes/ID",
    "/templates",
    "/templates/base",
    "/v2/templates/base",
    "/templates/aliases/base",
    "/files",
    "/process.Process/List",
    "/metrics",
];
const METHODS: [&str; 9] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"];
const QUERIES: [&str; 10] = [
    "",
    "limit=1",
    "limit=-1",
    "limit=99999999999",
    "nextToken=x",
    "metadata=%25%25&x",
    "state=running,gone",
    "start=x",
    "signature=v1_x&path=/etc/passwd",
    "%ff=%00",
];
const BODIES: [&str; 14] = [
    "",
    "{}",
    "[]",
    "null",
    "0",
    "{\"",
    "{\"cmd\": 1}",
    "{\"cmd\": \"true\", \"args\": [\"\\u0000\"]}",
    "{\"template\": \"../../etc\"}",
    "{\"templateID\": \"..%2f\", \"timeout\": -1}",
    "{\"timeout\": 1e999}",
    "{\"path\": \"/../../../etc/shadow\"}",
    "{\"count\": 0}",
    "{\"sandbox_id\": \"sb0\", \"name\": \"a\\nb\"}",
];
const HEADERS: [&str; 16] = [
    "",
    "Content-Type: application/json\r\n",
    "Content-Type: multipart/form-data; boundary=B\r\n",
    "Content-Type: application/connect+json\r\nConnect-Protocol-Version: 1\r\n",
    "E2b-Sandbox-Id: sb0000000000000000\r\n",
    "E2b-Sandbox-Id: ../..\r\nE2b-Sandbox-Port: 0\r\n",
    "X-Access-Token: sb0000000000000000x\r\n",
    "Accept: text/html\r\n",
    "Upgrade: websocket\r\nConnection: Upgrade\r\n",
    "Connection: close, x-api-key\r\n",
    "Idempotency-Key: A B\r\n",
    "Authorization: Bearer \r\n",
    "Expect: 100-continue\r\n",
    "Range: bytes=5-1\r\n",
    "Accept-Encoding: gzip, x\r\n",
    "Host: 80-sb0000000000000000.localhost\r\n",
];

fn request(random: &mut StdRng, key: &str, ids: &[&str]) -> String {
    let is_route = random.random_ratio(2, 3);
    let mut path = if is_route {
        ROUTES.choose(random).unwrap().replace("ID", ids.choose(random).unwrap())
    } else {
        String::new()
    };
    for _ in 0..if is_route { 0 } else { random.random_range(1..6) } {
        path.push('/');
        let choices = if random.random_ratio(1, 4) { ids } else { &SEGMENTS[..] };
        path.push_str(choices.choose(random).unwrap());
    }
    if random.random_ratio(1, 50) {
        path.push_str(&"a".repeat(20_000));
    }
    let query = QUERIES.choose(random).unwrap();
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    let method = METHODS
        [if random.random_ratio(1, 2) { random.random_range(0..2) } else { random.random_range(0..METHODS.len()) }];
    let headers: String = (0..2).map(|_| *HEADERS.choose(random).unwrap()).collect();
    let body = BODIES.choose(random).unwrap();
    let key = if random.random_ratio(3, 4) { key } else { "e2b_wrong" };
    let host = if headers.contains("Host:") { "" } else { "Host: test\r\n" };
    format!(
        "{method} {path}{query} HTTP/1.1\r\n{host}X-API-Key: {key}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The status of the answer; `None` where the connection was closed without one.
fn status_of(client: &Client, request: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(client.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request.as_bytes()).ok();
    let mut head = [0; 12];
    stream.read_exact(&mut head).ok()?;
    std::str::from_utf8(&head[9..]).ok()?.parse().ok()
}

#[test]
fn random_requests_are_answered_and_break_nothing() {
    if !can_run("random_requests_are_answered_and_break_nothing") {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let (seed, requests) =
        (number("WRENN_TEST_SEED").unwrap_or_else(rand::random), number("WRENN_TEST_REQUESTS").unwrap_or(4000));
    println!("WRENN_TEST_SEED={seed} WRENN_TEST_REQUESTS={requests}");
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let id = sandbox(&client, &json!({"timeout_sec": 3600}));
    let other = server.client(&new_key(dir.path(), "eve"));
    let kept = sandbox(&other, &json!({"timeout_sec": 3600}));
    run(&other, &kept, "echo mine > mine");
    let mut random = StdRng::seed_from_u64(seed);
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..requests {
        let request = request(&mut random, &key, &[&id, &kept]);
        let status = status_of(&client, &request);
        let shown: String = request.chars().take(500).collect();
        match status {
            // What is not served yet, what is not reached, and a machine that has no room.
            Some(501..=503) => {}
            None => panic!("no answer to {shown}"),
            Some(status) => assert!((100..500).contains(&status), "{status} for {shown}"),
        }
        *seen.entry(status).or_insert(0) += 1;
    }
    println!("{seen:?}");
    assert!(seen.len() > 5, "{seen:?}");
    assert_eq!(client.get("/healthz").0, 200);
    // Nobody has touched what is another's.
    assert_eq!(run(&other, &kept, "cat mine"), "mine");
    server.stop();
}

#[test]
fn what_e2bs_document_does_not_allow_is_refused() {
    if !can_run("what_e2bs_document_does_not_allow_is_refused") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let many: Vec<_> = (0..101).map(|number| format!("sb{number}")).collect();
    let wrong = [
        "/v2/sandboxes?limit=0".to_owned(),
        "/v2/sandboxes?limit=101".to_owned(),
        "/v2/sandboxes?startedAfter=".to_owned(),
        "/v2/sandboxes?state=".to_owned(),
        "/v2/sandboxes?order=".to_owned(),
        "/v2/sandboxes?startedAfter=yesterday".to_owned(),
        "/v2/templates?limit=101".to_owned(),
        "/templates/base?limit=".to_owned(),
        "/snapshots?limit=-1".to_owned(),
        format!("/sandboxes/metrics?sandbox_ids={}", many.join(",")),
        format!("/sandboxes/metrics?sandbox_ids={}", ",".repeat(101)),
        "/sandboxes/metrics?sandbox_ids=sb1,sb1".to_owned(),
    ];
    for path in wrong {
        let (status, body) = client.get(&path);
        assert!(status == 400 && body["message"].is_string(), "{status} for {path}: {body}");
    }
    for path in ["/v2/sandboxes?limit=100", "/v2/templates?limit=1", "/templates/base?limit=1&nextToken=0"] {
        assert_eq!(client.get(path).0, 200, "{path}");
    }
    for path in ["/templates/base", "/templates/base/builds/0"] {
        let (status, body) = client.post(path, &json!({}));
        assert!(status == 501 && body["message"].as_str().unwrap().contains("/v3/templates"), "{status}: {body}");
    }
    server.stop();
}
