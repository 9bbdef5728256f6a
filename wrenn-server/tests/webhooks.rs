//! Webhooks as their receivers meet them, with real guests.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use common::{Server, can_run, data_dir, new_key, sandbox};

/// What a receiver was sent.
struct Received {
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Received {
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(its, _)| its.eq_ignore_ascii_case(name));
        &found.unwrap_or_else(|| panic!("no {name}: {:?}", self.headers)).1
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A receiver that answers with these statuses in turn, and with the last one from then on.
fn receiver(statuses: &'static [u16]) -> (SocketAddr, Receiver<Received>) {
    receiver_at(TcpListener::bind("127.0.0.1:0").unwrap(), statuses)
}

fn receiver_at(listener: TcpListener, statuses: &'static [u16]) -> (SocketAddr, Receiver<Received>) {
    let (address, (sender, received)) = (listener.local_addr().unwrap(), channel());
    std::thread::spawn(move || {
        let mut statuses = statuses.iter().copied();
        let mut status = 0;
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = || {
                let mut line = String::new();
                stream.read_line(&mut line).ok();
                line.trim_end().to_owned()
            };
            let path = line().split(' ').nth(1).unwrap_or_default().to_owned();
            let headers: Vec<(String, String)> = std::iter::from_fn(|| Some(line()).filter(|line| !line.is_empty()))
                .map(|line| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap())
                .collect();
            // A server that ends may have connected alone.
            let len = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let Some((_, len)) = len else { continue };
            let mut body = vec![0; len.parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            status = statuses.next().unwrap_or(status);
            write!(stream.get_mut(), "HTTP/1.1 {status} It\r\nContent-Length: 0\r\n\r\n").unwrap();
            if sender.send(Received { path, headers, body }).is_err() {
                return;
            }
        }
    });
    (address, received)
}

const WAIT: Duration = Duration::from_secs(30);

#[test]
fn a_receiver_is_sent_what_it_wants_signed_and_again_after_a_failure() {
    if !can_run("a_receiver_is_sent_what_it_wants_signed_and_again_after_a_failure") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--webhooks-private"]);
    let client = server.client(&new_key(dir.path(), "ada"));
    let other = server.client(&new_key(dir.path(), "eve"));
    let (address, received) = receiver(&[500, 204]);
    let wanted = json!({
        "name": "mine", "url": format!("http://{address}/hook?a=b"), "enabled": true,
        "events": ["sandbox.lifecycle.created", "sandbox.lifecycle.killed"], "signatureSecret": "hush",
    });
    let (status, made) = client.post("/events/webhooks", &wanted);
    let id = made["id"].as_str().unwrap();
    assert_eq!((status, &made["enabled"], &made["events"]), (201, &json!(true), &wanted["events"]), "{made}");
    assert!(!made.to_string().contains("hush"), "{made}");

    // Another key's events are nothing to it.
    sandbox(&other, &json!({}));
    let sandbox = sandbox(&client, &json!({}));
    let (first, second) = (received.recv_timeout(WAIT).unwrap(), received.recv_timeout(WAIT).unwrap());
    assert_eq!((&first.body, &*first.path), (&second.body, "/hook?a=b"));
    assert_eq!(first.header("e2b-delivery-id"), second.header("e2b-delivery-id"));
    assert_eq!((second.header("e2b-webhook-id"), second.header("e2b-signature-version")), (id, "v1"));
    let right = Sha256::new().chain_update("hush").chain_update(&second.body).finalize();
    assert_eq!(second.header("e2b-signature"), STANDARD_NO_PAD.encode(right));
    let signature = second.header("x-wrenn-signature");
    let (at, digits) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(b"hush").unwrap();
    mac.update(&[at.as_bytes(), b".", &second.body].concat());
    let right: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digits, right);
    // It is what the API lists.
    let (_, listed) = client.get("/events/sandboxes?orderAsc=true&limit=1");
    assert_eq!(second.json(), listed[0]);
    assert_eq!(second.json()["sandboxId"], json!(sandbox));

    // It does not want to know of the pause.
    assert_eq!(client.send("POST", &format!("/v1/sandboxes/{sandbox}/pause"), None).0, 200);
    assert_eq!(client.delete(&format!("/v1/sandboxes/{sandbox}")), 204);
    assert_eq!(received.recv_timeout(WAIT).unwrap().json()["type"], json!("sandbox.lifecycle.killed"));

    // The same ones by the native API, for their key alone.
    let (status, listed) = client.get("/v1/webhooks");
    assert_eq!((status, &listed[0]["id"], &listed[0]["events"]), (200, &json!(id), &json!(["created", "killed"])));
    assert_eq!((&listed[0]["failing_since"], &listed[0]["reason"]), (&json!(null), &json!(null)), "{listed}");
    assert_eq!(other.get("/events/webhooks"), (200, json!([])));
    for path in [format!("/v1/webhooks/{id}"), format!("/events/webhooks/{id}")] {
        assert_eq!((other.get(&path).0, other.delete(&path), client.get(&path).0), (404, 404, 200));
    }
    let change = |body: &str| client.send("PATCH", &format!("/v1/webhooks/{id}"), Some(body));
    let (status, changed) = change(r#"{"enabled": false, "events": []}"#);
    assert_eq!((status, &changed["enabled"], &changed["name"]), (200, &json!(false), &json!("mine")), "{changed}");
    let (status, changed) = client.send("PATCH", &format!("/events/webhooks/{id}"), Some(r#"{"enabled": true}"#));
    assert_eq!((status, &changed["enabled"], &changed["events"]), (200, &json!(true), &json!([])), "{changed}");
    assert_eq!(client.delete(&format!("/events/webhooks/{id}")), 200);
    assert_eq!(client.get("/v1/webhooks"), (200, json!([])));

    // Whoever has a key that was revoked is not told of the end of its sandbox.
    let (status, made) = other.post("/v1/webhooks", &json!({"url": wanted["url"], "secret": "hush"}));
    assert_eq!(status, 201, "{made}");
    common::sandbox(&other, &json!({"timeout_sec": 8}));
    assert_eq!(received.recv_timeout(WAIT).unwrap().json()["type"], json!("sandbox.lifecycle.created"));
    let revoked = common::output(dir.path(), &["keys", "revoke", &other.key[4..12]]);
    assert!(revoked.status.success(), "{revoked:?}");
    assert!(received.recv_timeout(Duration::from_secs(12)).is_err(), "nothing more");
    server.stop();
}

#[test]
fn what_was_to_be_brought_at_a_kill_is_brought_by_the_next_server_and_once() {
    if !can_run("what_was_to_be_brought_at_a_kill_is_brought_by_the_next_server_and_once") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &["--webhooks-private"]);
    let client = server.client(&key);
    let (address, received) = receiver(&[500, 204]);
    let wanted = json!({"url": format!("http://{address}/"), "secret": "hush", "events": ["created"]});
    assert_eq!(client.post("/v1/webhooks", &wanted).0, 201);
    let one = sandbox(&client, &json!({}));
    let first = received.recv_timeout(WAIT).unwrap();
    server.kill();

    let server = Server::start(dir.path(), &["--webhooks-private"]);
    let second = received.recv_timeout(WAIT).unwrap();
    assert_eq!((second.json()["sandboxId"].as_str(), &second.body), (Some(&*one), &first.body));
    assert_eq!(second.header("e2b-delivery-id"), first.header("e2b-delivery-id"));
    // One is due while nobody takes it, and the server is told to end.
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = server.client(&key);
    let wanted = json!({"url": format!("http://{at}/"), "secret": "hush", "events": ["created"]});
    let webhook = client.post("/v1/webhooks", &wanted).1;
    let two = sandbox(&client, &json!({}));
    assert_eq!(received.recv_timeout(WAIT).unwrap().json()["sandboxId"].as_str(), Some(&*two));
    let is_failing =
        || client.get(&format!("/v1/webhooks/{}", webhook["id"].as_str().unwrap())).1["reason"].is_string();
    while !is_failing() {
        std::thread::sleep(Duration::from_millis(20));
    }
    server.stop();
    let (late, waiting) = receiver_at(TcpListener::bind(at).unwrap(), &[204]);
    assert_eq!(late, at);
    let server = Server::start(dir.path(), &["--webhooks-private"]);
    assert_eq!(waiting.recv_timeout(WAIT).unwrap().json()["sandboxId"].as_str(), Some(&*two));
    assert!(received.recv_timeout(Duration::from_secs(2)).is_err(), "what was brought is not brought again");
    server.stop();
}

#[test]
fn one_that_fails_says_why_and_what_is_not_public_is_refused() {
    if !can_run("one_that_fails_says_why_and_what_is_not_public_is_refused") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &["--webhooks-private"]);
    let client = server.client(&key);
    let (address, received) = receiver(&[307]);
    let made = client.post("/v1/webhooks", &json!({"url": format!("http://{address}/"), "secret": "hush"})).1;
    let id = made["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    let one = sandbox(&client, &json!({}));
    received.recv_timeout(WAIT).unwrap();
    received.recv_timeout(WAIT).unwrap();
    let (_, webhook) = client.get(&format!("/v1/webhooks/{id}"));
    assert_eq!((&webhook["enabled"], &webhook["reason"]), (&json!(true), &json!("it answered 307 Temporary Redirect")));
    assert!(webhook["failing_since"].is_string(), "{webhook}");
    for (body, why) in [
        (json!({"url": "https://example.com"}), "secret"),
        (json!({"url": "ftp://example.com", "secret": "a"}), "url is none of http or https"),
        (json!({"url": "https://example.com", "secret": ""}), "the secret has 1 to 256 bytes"),
        (json!({"url": "https://example.com", "secret": "a", "events": ["born"]}), "there are created, paused"),
    ] {
        let (status, answer) = client.post("/v1/webhooks", &body);
        assert_eq!((status, answer["error"]["message"].to_string().contains(why)), (400, true), "{body}: {answer}");
    }
    assert_eq!(client.delete(&format!("/v1/sandboxes/{one}")), 204);
    server.stop();

    // Without the flag nothing is sent there, not even to one that was made before.
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    while received.try_recv().is_ok() {}
    for url in ["http://127.0.0.1:1/", "http://localhost/", "http://[::1]/", "http://169.254.169.254/latest/meta-data"]
    {
        let (status, answer) = client.post("/v1/webhooks", &json!({"url": url, "secret": "a"}));
        assert_eq!((status, answer["error"]["message"].to_string().contains("not public")), (403, true), "{answer}");
    }
    let one = sandbox(&client, &json!({}));
    assert!(received.recv_timeout(Duration::from_secs(3)).is_err(), "it is not reached");
    let (_, webhook) = client.get(&format!("/v1/webhooks/{id}"));
    assert!(webhook["reason"].to_string().contains("127.0.0.1, which is not public"), "{webhook}");
    assert_eq!(client.delete(&format!("/v1/sandboxes/{one}")), 204);
    server.stop();
}
