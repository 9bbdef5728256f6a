//! A restart under load: what streams carried goes on where it was.
#![expect(clippy::unwrap_used, clippy::big_endian_bytes, reason = "tests; Connect's frames have their lengths so")]

mod common;

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use common::stream::{Said, Stream};
use common::{Client, Server, can_run, data_dir, new_key, sandbox};

/// Each line once, and all of them.
fn lines(last: u32) -> String {
    (1..=last).map(|number| format!("{number}\n")).collect()
}

fn counting(last: u32) -> [String; 2] {
    let program = format!("import time\nfor i in range({last}): print(i + 1, flush=True), time.sleep(0.01)");
    ["-c".to_owned(), program]
}

#[test]
fn streams_go_on_after_a_restart_without_a_lost_or_repeated_byte() {
    if !can_run("streams_go_on_after_a_restart_without_a_lost_or_repeated_byte") {
        return;
    }
    const LAST: u32 = 1200;
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let path = |id: &str| format!("/v1/sandboxes/{id}/exec/stream");
    let begun: Vec<_> = (0..10)
        .map(|_| {
            let id = sandbox(&client, &json!({"timeout_sec": 3600}));
            let (stream, pid) =
                Stream::begun(&client, &path(&id), json!({"cmd": "/usr/bin/python3", "args": counting(LAST)}));
            (id, pid, stream)
        })
        .collect();
    thread::sleep(Duration::from_secs(1));
    let readers: Vec<_> =
        begun.into_iter().map(|(id, pid, stream)| thread::spawn(move || (id, pid, stream.rest()))).collect();
    server.stop();
    let cut: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();

    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let mut were_cut = 0;
    for (id, pid, before) in cut {
        assert!(before.exit_code.is_some() || before.errors == ["closing"], "{:?}", before.errors);
        were_cut += u32::from(before.exit_code.is_none());
        let mut all = before.stdout;
        if before.exit_code.is_none() {
            let mut stream = Stream::open(&client, &path(&id)).unwrap();
            stream.send(&json!({"type": "attach", "pid": pid, "offset": all.len()}));
            assert_eq!(stream.json(), json!({"type": "start", "pid": pid}));
            let Said { stdout, exit_code, errors, .. } = stream.rest();
            assert_eq!((exit_code, errors.len()), (Some(0), 0), "{errors:?}");
            all.extend(stdout);
        }
        assert!(String::from_utf8(all).unwrap() == lines(LAST), "{id}");
    }
    assert!(were_cut > 5, "{were_cut}");
    server.stop();
}

#[test]
fn a_client_that_counts_nothing_goes_on_after_a_restart_as_well() {
    if !can_run("a_client_that_counts_nothing_goes_on_after_a_restart_as_well") {
        return;
    }
    const LAST: u32 = 1200;
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let (status, made) = client.post("/v2/sandboxes", &json!({"templateID": "base", "timeout": 3600}));
    assert_eq!(status, 201, "{made}");
    let headers = HashMap::from([
        ("X-Access-Token", made["envdAccessToken"].as_str().unwrap().to_owned()),
        ("E2b-Sandbox-Id", made["sandboxID"].as_str().unwrap().to_owned()),
        ("Content-Type", "application/connect+json".to_owned()),
        ("Connect-Protocol-Version", "1".to_owned()),
    ]);
    let start = json!({"process": {"cmd": "/usr/bin/python3", "args": counting(LAST)}, "stdin": false});
    let reader = {
        let (client, headers) = (client.clone(), headers.clone());
        thread::spawn(move || call(&client, "/process.Process/Start", &headers, &start))
    };
    thread::sleep(Duration::from_secs(3));
    server.stop();
    let before = reader.join().unwrap();
    let pid = before.pid.unwrap();
    assert!(before.exit_code.is_none() && before.end.contains("being shut down"), "{}", before.end);

    let server = Server::start(dir.path(), &[]);
    let connect = json!({"process": {"pid": pid}});
    let after = call(&server.client(&key), "/process.Process/Connect", &headers, &connect);
    assert_eq!((after.pid, after.exit_code), (Some(pid), Some(0)), "{}", after.end);
    assert!(before.stdout.len() > 100 && !after.stdout.is_empty());
    assert!(String::from_utf8([before.stdout, after.stdout].concat()).unwrap() == lines(LAST));
    server.stop();
}

/// What a stream of E2B's protocol has said.
#[derive(Default)]
struct Heard {
    pid: Option<u64>,
    stdout: Vec<u8>,
    exit_code: Option<i64>,
    end: String,
}

fn call(client: &Client, path: &str, headers: &HashMap<&str, String>, message: &Value) -> Heard {
    let message = message.to_string();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n",
        message.len() + 5
    );
    let len = u32::try_from(message.len()).unwrap().to_be_bytes();
    let (status, body) = client.bytes(&[head.as_bytes(), &[0], &len, message.as_bytes()].concat());
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let (mut heard, mut rest) = (Heard::default(), &body[..]);
    while let Some((head, after)) = rest.split_first_chunk::<5>() {
        let len = usize::try_from(u32::from_be_bytes(head[1..].try_into().unwrap())).unwrap();
        let text = std::str::from_utf8(&after[..len]).unwrap();
        rest = &after[len..];
        if head[0] == 2 {
            text.clone_into(&mut heard.end);
            continue;
        }
        let event = &serde_json::from_str::<Value>(text).unwrap()["event"];
        heard.pid = heard.pid.or_else(|| event["start"]["pid"].as_u64());
        heard.stdout.extend(STANDARD.decode(event["data"]["stdout"].as_str().unwrap_or_default()).unwrap());
        if event["end"].is_object() {
            heard.exit_code = Some(event["end"]["exitCode"].as_i64().unwrap_or(0));
        }
    }
    heard
}
