//! Streams and terminals, with real guests: what a process writes comes whole, whatever becomes of its sandbox.

mod common;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use common::stream::{Said, Stream};
use common::{Client, Server, can_run, data_dir, new_key, run, sandbox};

fn shell(line: &str) -> Value {
    json!({"cmd": "/bin/bash", "args": ["-c", line]})
}

/// Waits for something that comes soon.
fn soon(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn counts(client: &Client, id: &str, pattern: &str) -> String {
    run(client, id, &format!("pgrep -fc '{pattern}' || true"))
}

#[test]
fn a_command_has_its_input_and_gives_its_output() {
    if !can_run("a_command_has_its_input_and_gives_its_output") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--no-auth"]);
    let client = server.client("");
    let id = sandbox(&client, &json!({"envs": {"WHO": "ada"}}));

    let mut stream = Stream::exec(&client, &id, json!({"cmd": "cat"}));
    stream.stdin("one\n");
    assert_eq!(stream.until("one\n"), "one\n", "at once");
    stream.send(&json!({"type": "stdin", "data": "/w==", "encoding": "base64"}));
    let answer = stream.json();
    assert_eq!(answer, json!({"type": "stdout", "data": "/w==", "encoding": "base64"}));
    stream.send_raw(Message::binary(&b"two\n"[..]));
    stream.send(&json!({"type": "close_stdin"}));
    let said = stream.rest();
    assert_eq!((said.stdout().as_str(), said.exit_code, said.errors.len()), ("two\n", Some(0), 0));

    let mut start = shell("echo $WHO $A; pwd >&2; exit 3");
    start["envs"] = json!({"A": "b"});
    start["cwd"] = json!("/tmp");
    let said = Stream::exec(&client, &id, start).rest();
    assert_eq!((said.stdout().as_str(), &said.stderr[..], said.exit_code), ("ada b\n", &b"/tmp\n"[..], Some(3)));
    let said = Stream::exec(&client, &id, shell("kill -TERM $$")).rest();
    assert_eq!(said.exit_code, Some(143));

    // Each byte of four characters by itself; then what is none.
    let split = r"for b in a 303 251 342 202 254 360 237 246 200; do printf \\$b; sleep 0.1; done";
    let split = split.replace("in a", "in 141");
    let mut stream = Stream::exec(&client, &id, shell(&split));
    let mut text = String::new();
    while let Some(message) = stream.next() {
        let message: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        assert!(message["encoding"].is_null(), "{message}");
        text.push_str(message["data"].as_str().unwrap_or_default());
    }
    assert_eq!(text, "a\u{e9}\u{20ac}\u{1f980}");
    let said =
        Stream::exec(&client, &id, shell(r"printf 'a\303'; printf '\342\202' >&2; sleep 0.2; printf '\377'")).rest();
    assert_eq!((&said.stdout[..], &said.stderr[..]), (&b"a\xc3\xff"[..], &b"\xe2\x82"[..]));
    let said = Stream::exec(&client, &id, shell("head -c 3000000 /dev/urandom | tee copy")).rest();
    assert_eq!(said.stdout.len(), 3_000_000);
    assert!(client.read(&id, "copy").1 == said.stdout, "each byte is as it was");

    // More than is kept anywhere, to a process that does not read for a while, and back.
    let mut stream = Stream::exec(&client, &id, shell("sleep 1; md5sum; md5sum < copy"));
    for piece in said.stdout.chunks(500_000) {
        stream.send_raw(Message::binary(piece.to_vec()));
    }
    stream.send(&json!({"type": "close_stdin"}));
    let said = stream.rest();
    let sums = said.stdout();
    let sums: Vec<&str> = sums.lines().map(|line| &line[..32]).collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{sums:?} {:?}", said.errors);
    server.stop();
}

#[test]
fn a_process_ends_when_it_is_told_to_or_its_client_goes() {
    if !can_run("a_process_ends_when_it_is_told_to_or_its_client_goes") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--no-auth"]);
    let client = server.client("");
    let id = sandbox(&client, &json!({}));

    let mut stream = Stream::exec(&client, &id, shell("sleep 1001 & sleep 1001"));
    stream.send(&json!({"type": "stop"}));
    assert_eq!(stream.rest().exit_code, Some(137));
    soon("all of it is killed", || counts(&client, &id, "^sleep 1001") == "0");
    let mut stream =
        Stream::exec(&client, &id, shell("trap 'echo bye; exit 5' TERM; echo on; while :; do sleep 0.1; done"));
    stream.until("on\n");
    stream.send(&json!({"type": "signal", "signal": "TERM"}));
    let said = stream.rest();
    assert_eq!((said.stdout().as_str(), said.exit_code), ("bye\n", Some(5)));
    let mut start = shell("echo a; sleep 60");
    start["timeout_sec"] = json!(1);
    let said = Stream::exec(&client, &id, start).rest();
    assert_eq!(
        (said.stdout().as_str(), said.exit_code, &said.errors[..]),
        ("a\n", None, &["command_timed_out".to_owned()][..])
    );

    let stream = Stream::exec(&client, &id, json!({"cmd": "sleep", "args": ["1002"]}));
    let kept = Stream::exec(&client, &id, json!({"cmd": "sleep", "args": ["1003"], "detached": true}));
    assert_eq!(counts(&client, &id, "^sleep 100[23]"), "2");
    drop((stream, kept));
    soon("its client is gone", || counts(&client, &id, "^sleep 1002") == "0");
    assert_eq!(counts(&client, &id, "^sleep 1003"), "1");

    // Nobody reads, so the process waits and is not read ahead.
    let stream = Stream::exec(&client, &id, shell("yes | tee >(wc -c > count) | cat; true"));
    std::thread::sleep(Duration::from_secs(2));
    let memory = server.resident_kib();
    std::thread::sleep(Duration::from_secs(3));
    let more = server.resident_kib().saturating_sub(memory);
    assert!(more < 8 << 10, "{more} KiB more");
    drop(stream);
    soon("its client is gone", || counts(&client, &id, "^yes") == "0");

    // A stream is use, for as long as it is open.
    let brief = sandbox(&client, &json!({"timeout_sec": 1}));
    assert_eq!(Stream::exec(&client, &brief, shell("sleep 4; echo late")).rest().stdout(), "late\n");

    // One that goes during a pause has its process killed after it.
    let stream = Stream::exec(&client, &id, json!({"cmd": "sleep", "args": ["1004"]}));
    let path = format!("/v1/sandboxes/{id}");
    assert_eq!(client.post(&format!("{path}/pause"), &json!({})).0, 200);
    drop(stream);
    assert_eq!(client.post(&format!("{path}/resume"), &json!({})).0, 200);
    soon("its client is gone", || counts(&client, &id, "^sleep 1004") == "0");
    server.stop();
}

#[test]
fn a_pause_takes_nothing_from_a_stream() {
    if !can_run("a_pause_takes_nothing_from_a_stream") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--no-auth"]);
    let client = server.client("");
    let id = sandbox(&client, &json!({}));
    let path = format!("/v1/sandboxes/{id}");
    let mut slow = Stream::exec(&client, &id, shell("for i in $(seq 400); do echo $i; sleep 0.01; done; cat"));
    // As much as goes through, and so it is in the midst of it.
    let mut fast = Stream::exec(&client, &id, shell("seq 3000000"));
    let mut terminal = Stream::terminal(
        &client,
        &id,
        json!({"cmd": "bash", "args": ["-c", "seq 400 | while read i; do echo $i; sleep 0.01; done; stty size"]}),
    );
    let (mut slow_said, mut fast_said, mut terminal_said) = (Said::default(), Said::default(), Said::default());
    for (waits_ms, input) in [(0, "a"), (700, "b"), (20, "c")] {
        for (stream, said) in
            [(&mut slow, &mut slow_said), (&mut fast, &mut fast_said), (&mut terminal, &mut terminal_said)]
        {
            said.take(&stream.next().unwrap());
        }
        let (status, answer) = client.post(&format!("{path}/pause"), &json!({}));
        assert_eq!(status, 200, "{answer}");
        slow.stdin(input);
        terminal.send(&json!({"type": "resize", "cols": 33, "rows": 11}));
        std::thread::sleep(Duration::from_millis(waits_ms));
        let (status, answer) = client.post(&format!("{path}/resume"), &json!({}));
        assert_eq!(status, 200, "{answer}");
    }
    slow.send(&json!({"type": "close_stdin"}));
    let ends =
        [(slow, slow_said, 400, "abc"), (fast, fast_said, 3_000_000, ""), (terminal, terminal_said, 400, "11 33\n")];
    // All at once: a client that reads nothing for a minute is gone.
    let ends = ends.map(|(stream, said, count, rest)| (std::thread::spawn(|| stream.rest()), said, count, rest));
    for (end, said, count, rest) in ends {
        let end = end.join().unwrap();
        let all = [said.stdout, end.stdout].concat();
        let all = String::from_utf8(all).unwrap().replace('\r', "");
        let wanted: String = (1..=count).map(|number| format!("{number}\n")).chain([rest.to_owned()]).collect();
        assert!(said.errors.is_empty() && end.errors.is_empty(), "{:?} {:?}", said.errors, end.errors);
        let differs = all.bytes().zip(wanted.bytes()).position(|(one, other)| one != other);
        assert!(all == wanted, "{count}: {} bytes of {}, other from {differs:?} on", all.len(), wanted.len());
        assert_eq!(end.exit_code, Some(0));
    }

    // The end of the sandbox is told, also in a pause.
    let (runs, sleeps) = (sandbox(&client, &json!({})), id);
    for (id, is_paused) in [(runs, false), (sleeps, true)] {
        let path = format!("/v1/sandboxes/{id}");
        let stream = Stream::exec(&client, &id, shell("sleep 1000"));
        if is_paused {
            assert_eq!(client.post(&format!("{path}/pause"), &json!({})).0, 200);
        }
        assert_eq!(client.delete(&path), 204);
        let said = stream.rest();
        assert_eq!((said.exit_code, said.errors), (None, vec!["invalid_state".to_owned()]));
    }
    server.stop();
}

#[test]
fn a_terminal_is_one() {
    if !can_run("a_terminal_is_one") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--no-auth"]);
    let client = server.client("");
    let id = sandbox(&client, &json!({}));
    let mut stream =
        Stream::terminal(&client, &id, json!({"cols": 101, "rows": 31, "envs": {"PS1": "> "}, "cwd": "/tmp"}));
    stream.stdin("stty size; tty; pwd; echo l''ogin: $0 $-\n");
    let said = stream.until("login: ");
    assert!(said.contains("31 101") && said.contains("/dev/pts/") && said.contains("/tmp"), "{said}");
    stream.send(&json!({"type": "resize", "cols": 55, "rows": 22}));
    stream.send_raw(Message::binary(&b"stty size; e''xec true\n"[..]));
    let said = stream.rest();
    assert!(said.stdout().contains("22 55"), "{}", said.stdout());
    assert_eq!((said.exit_code, said.errors.len()), (Some(0), 0));

    let mut stream = Stream::terminal(&client, &id, json!({"cmd": "sh", "args": ["-c", "stty size; cat; exit 7"]}));
    stream.until("24 80");
    stream.stdin("a\n\u{4}");
    let said = stream.rest();
    let letters: String = said.stdout().split_whitespace().collect();
    assert_eq!((letters.as_str(), said.exit_code), ("aa", Some(7)), "typed, and printed");
    let stream = Stream::terminal(&client, &id, json!({"cmd": "sleep", "args": ["1005"]}));
    drop(stream);
    soon("its client is gone", || counts(&client, &id, "^sleep 1005") == "0");
    server.stop();
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story")]
fn what_is_wrong_with_a_stream_is_told() {
    if !can_run("what_is_wrong_with_a_stream_is_told") {
        return;
    }
    let dir = data_dir();
    let (key, other) = (new_key(dir.path(), "ada"), new_key(dir.path(), "eve"));
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let id = sandbox(&client, &json!({}));
    let path = format!("/v1/sandboxes/{id}");
    for route in ["exec/stream", "terminal"] {
        let at = format!("{path}/{route}");
        let refused = |client: &Client, at: &str| Stream::open(client, at).err().unwrap();
        assert_eq!(refused(&server.client(""), &at), (401, "unauthorized".to_owned()));
        assert_eq!(refused(&server.client(&other), &at), (404, "not_found".to_owned()));
        assert_eq!(refused(&client, &format!("/v1/sandboxes/sb0000000000000000/{route}")).0, 404);
        let (status, answer) = client.get(&at);
        assert_eq!((status, &answer["error"]["code"]), (426, &json!("no_websocket")), "{answer}");
        let (head, _) = client.head_and_body(&at);
        assert!(head.lines().any(|line| line == "upgrade: websocket"), "{head}");

        for bad in [
            json!({"type": "stdin", "data": "a"}),
            json!({"type": "start", "cmd": 1}),
            json!({"type": "start", "cmd": "cat", "more": 1}),
            json!({"type": "start", "cmd": "cat", "envs": {"A=B": "c"}}),
            json!({"type": "start", "cmd": "cat", "timeout_sec": 0}),
            json!({"type": "start", "cmd": "cat", "cols": 0, "rows": 1}),
            json!({"type": "start", "cmd": "cat", "cwd": "/nowhere"}),
            json!({"type": "start", "cmd": "no-such-program"}),
            json!([]),
        ] {
            let mut stream = Stream::open(&client, &at).unwrap();
            stream.send(&bad);
            let said = stream.rest();
            let code = if bad["cmd"] == "no-such-program" { "not_found" } else { "invalid_input" };
            assert_eq!((said.errors, said.exit_code), (vec![code.to_owned()], None), "{route} {bad}");
        }
        let mut stream = Stream::open(&client, &at).unwrap();
        stream.send_raw(Message::text("{"));
        assert_eq!(stream.rest().errors, ["invalid_input"]);
    }

    // One that is wrong does not end what runs.
    let mut stream = Stream::exec(&client, &id, json!({"cmd": "cat"}));
    for bad in [
        json!({"type": "what"}),
        json!({"type": "start", "cmd": "cat"}),
        json!({"type": "stdin", "data": "_", "encoding": "base64"}),
        json!({"type": "signal", "signal": "NONE"}),
        json!({"type": "resize", "cols": 0, "rows": 1}),
        json!({"type": "resize", "cols": 1, "rows": 1}),
    ] {
        stream.send(&bad);
        let answer = stream.json();
        assert_eq!(answer["type"], "error", "{bad}: {answer}");
    }
    stream.stdin("still\n");
    stream.send(&json!({"type": "close_stdin"}));
    let said = stream.rest();
    assert_eq!((said.stdout().as_str(), said.exit_code), ("still\n", Some(0)));
    let mut stream = Stream::exec(&client, &id, json!({"cmd": "sleep", "args": ["1006"]}));
    stream.send_raw(Message::binary(vec![b'a'; (1 << 20) + 1]));
    assert_eq!(stream.rest().errors, ["invalid_input"], "it is too large");
    soon("it is killed", || counts(&client, &id, "^sleep 1006") == "0");

    assert_eq!(client.post(&format!("{path}/pause"), &json!({})).0, 200);
    let refused = |at: String| Stream::open(&client, &at).err().unwrap();
    assert_eq!(refused(format!("{path}/exec/stream")), (409, "invalid_state".to_owned()));
    assert_eq!(client.delete(&path), 204);
    assert_eq!(refused(format!("{path}/terminal")), (409, "invalid_state".to_owned()));

    // What runs when the server ends is told so.
    let id = sandbox(&client, &json!({}));
    let stream = Stream::exec(&client, &id, json!({"cmd": "sleep", "args": ["1007"]}));
    let ending = std::thread::spawn(|| server.stop());
    assert_eq!(stream.rest().errors, ["closing"]);
    ending.join().unwrap();
}
