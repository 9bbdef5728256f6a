//! Events as clients list them and listen to them, with real guests.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::{Client, Server, can_run, data_dir, new_key, sandbox};

/// Server-sent events, as they come.
struct Listener(BufReader<TcpStream>);

impl Listener {
    fn new(client: &Client, after: Option<&str>) -> Self {
        let mut stream = TcpStream::connect(client.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let after = after.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
        let key = &client.key;
        write!(stream, "GET /v1/events/stream HTTP/1.1\r\nHost: test\r\nX-API-Key: {key}\r\n{after}\r\n").unwrap();
        let mut listener = Self(BufReader::new(stream));
        assert_eq!(listener.line(), "HTTP/1.1 200 OK");
        let head: Vec<String> = std::iter::from_fn(|| Some(listener.line()).filter(|line| !line.is_empty())).collect();
        assert!(head.contains(&"content-type: text/event-stream".to_owned()), "{head:?}");
        listener
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The next event's id, type and data.
    fn next(&mut self) -> (String, String, Value) {
        let (mut id, mut kind) = (String::new(), String::new());
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some(("id", value)) => value.clone_into(&mut id),
                Some(("event", value)) => value.clone_into(&mut kind),
                Some(("data", value)) => return (id, kind, serde_json::from_str(value).unwrap()),
                // A chunk's length, its end, or a sign of life.
                _ => {}
            }
        }
    }
}

#[test]
fn what_happens_is_told_to_its_key_as_it_happens_and_after_a_gap() {
    if !can_run("what_happens_is_told_to_its_key_as_it_happens_and_after_a_gap") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&new_key(dir.path(), "ada"));
    let other = server.client(&new_key(dir.path(), "eve"));
    let (mut own, mut others) = (Listener::new(&client, None), Listener::new(&other, None));
    let id = sandbox(&client, &json!({}));
    let (first, kind, data) = own.next();
    assert_eq!((&*kind, &data["sandbox_id"], &data["template"]), ("created", &json!(id), &json!("base")));
    assert_eq!((&data["id"], &data["type"]), (&json!(first), &json!("created")));
    drop(own);
    assert_eq!(client.send("POST", &format!("/v1/sandboxes/{id}/pause"), None).0, 200);
    assert_eq!(client.delete(&format!("/v1/sandboxes/{id}")), 204);
    let mut own = Listener::new(&client, Some(&first));
    let later: Vec<_> = (0..2).map(|_| own.next().1).collect();
    assert_eq!(later, ["paused", "killed"]);

    let list = |query: &str| {
        let (status, events) = client.get(&format!("/v1/events{query}"));
        assert_eq!(status, 200, "{events}");
        let events = events.as_array().unwrap().iter();
        events.map(|event| event["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(""), ["killed", "paused", "created"]);
    assert_eq!(list("?order=asc&offset=1&limit=1"), ["paused"]);
    assert_eq!(list(&format!("?sandbox_id={id}")).len(), 3);
    assert_eq!(list("?sandbox_id=sb0000000000000000").len(), 0);
    for bad in ["limit=0", "limit=1001", "order=up", "sandbox_id=a", "unknown=1"] {
        assert_eq!(client.get(&format!("/v1/events?{bad}")).0, 400, "{bad}");
    }
    assert_eq!(other.get("/v1/events"), (200, json!([])));

    // Another key's event is none to begin after, and another key has heard of none.
    let head = format!("X-API-Key: {}\r\nLast-Event-ID: {first}", other.key);
    let request = format!("GET /v1/events/stream HTTP/1.1\r\nHost: test\r\n{head}\r\nConnection: close\r\n\r\n");
    let (status, answer) = other.raw(request.as_bytes());
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("not_found")));
    let mine = sandbox(&other, &json!({}));
    assert_eq!(others.next().2["sandbox_id"], json!(mine));
    assert_eq!(other.delete(&format!("/v1/sandboxes/{mine}")), 204);

    // Listeners do not hinder the server's end.
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[test]
fn builds_are_told_and_counted_as_sandboxes_are() {
    if !can_run("builds_are_told_and_counted_as_sandboxes_are") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&new_key(dir.path(), "ada"));
    let mut listener = Listener::new(&client, None);
    let mut ids = Vec::new();
    for (cmd, ends) in [("true", "build_succeeded"), ("echo confidential; exit 3", "build_failed")] {
        let recipe = json!({"name": "app", "steps": [{"type": "run", "cmd": cmd}]});
        let (status, build) = client.post("/v1/builds", &recipe);
        assert_eq!(status, 202, "{build}");
        for wanted in ["build_started", ends] {
            let (_, kind, event) = listener.next();
            assert_eq!((&*kind, &event["type"]), (wanted, &json!(wanted)), "{event}");
            assert_eq!((&event["build_id"], &event["template"]), (&build["id"], &json!("app")), "{event}");
            assert_eq!(event["sandbox_id"], Value::Null, "{event}");
            assert!(!event.to_string().contains("confidential"), "{event}");
            ids.push((kind, event["reason"].clone()));
        }
    }
    assert_eq!(ids[3].1, "its step 1 failed");
    let (status, listed) = client.get("/v1/events?order=asc");
    let kinds: Vec<_> = listed.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!((status, kinds), (200, ids.iter().map(|(kind, _)| &**kind).collect()));
    assert_eq!(client.get("/events/sandboxes"), (200, json!([])), "E2B's are of sandboxes alone");

    let (_, body) = client.head_and_body("/metrics");
    let told = String::from_utf8(body).unwrap();
    for line in [
        "wrenn_builds_started_total 2",
        r#"wrenn_builds_total{outcome="ready"} 1"#,
        r#"wrenn_builds_total{outcome="error"} 1"#,
        r#"wrenn_builds_total{outcome="cancelled"} 0"#,
        "wrenn_build_duration_seconds_count 1",
    ] {
        assert!(told.lines().any(|one| one == line), "{line}: {told}");
    }
    server.stop();
}
