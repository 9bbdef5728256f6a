//! The native API, with real guests.

mod common;

use serde_json::{Value, json};

use common::{Client, Server, can_run, data_dir, new_key, run, sandbox};

#[test]
fn a_sandbox_is_made_used_paused_resumed_forked_and_ended() {
    if !can_run("a_sandbox_is_made_used_paused_resumed_forked_and_ended") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let id = sandbox(&client, &json!({"envs": {"WHO": "ada"}, "timeout_sec": 600}));
    let path = format!("/v1/sandboxes/{id}");
    assert_eq!(run(&client, &id, "echo $WHO; echo kept > kept"), "ada");

    commands_are_answered(&client, &id);
    assert_eq!(client.send("POST", &format!("{path}/ping"), None).0, 204);

    let (status, answer) = client.post(&format!("{path}/fork"), &json!({"count": 2}));
    let children: Vec<&str> = answer.as_array().unwrap().iter().map(|child| child["id"].as_str().unwrap()).collect();
    assert_eq!((status, children.len()), (201, 2), "{answer}");
    for child in children {
        assert_eq!(run(&client, child, "cat kept"), "kept");
        assert_eq!(client.delete(&format!("/v1/sandboxes/{child}")), 204);
    }

    let (status, answer) = client.send("POST", &format!("{path}/pause"), None);
    assert_eq!((status, &answer["status"]), (200, &json!("paused")), "{answer}");
    for refused in ["pause", "ping", "exec", "fork"] {
        let (status, answer) = client.post(
            &format!("{path}/{refused}"),
            &match refused {
                "exec" => json!({"cmd": "true"}),
                _ => json!({}),
            },
        );
        assert_eq!((status, &answer["error"]["code"]), (409, &json!("invalid_state")), "{refused}: {answer}");
    }
    let (status, answer) = client.send("POST", &format!("{path}/resume"), None);
    assert_eq!((status, &answer["status"]), (200, &json!("running")), "{answer}");
    assert_eq!(client.send("POST", &format!("{path}/resume"), None).0, 409);
    assert_eq!(run(&client, &id, "cat kept"), "kept");

    // Another key knows nothing of it.
    let other = server.client(&new_key(dir.path(), "eve"));
    assert_eq!(other.get("/v1/sandboxes"), (200, json!([])));
    for (method, route) in [("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/ping")] {
        assert_eq!(other.send(method, &format!("{path}{route}"), None).0, 404, "{method} {route}");
    }
    assert_eq!(run(&client, &id, "cat kept"), "kept");

    assert_eq!(client.delete(&path), 204);
    assert_eq!(client.delete(&path), 204, "it has ended");
    let (status, answer) = client.get(&path);
    assert_eq!((status, &answer["status"]), (200, &json!("stopped")), "{answer}");
    let (status, answer) = client.post(&format!("{path}/exec"), &json!({"cmd": "true"}));
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("invalid_state")), "{answer}");
    let (_, all) = client.get("/v1/sandboxes");
    let all: Vec<_> = all.as_array().unwrap().iter().map(|one| one["status"].as_str().unwrap().to_owned()).collect();
    assert_eq!(all, ["stopped"; 3]);
    server.stop();
}

/// Each kind of end that a command can have.
fn commands_are_answered(client: &Client, id: &str) {
    let path = format!("/v1/sandboxes/{id}");
    let exec = |body: &Value| client.post(&format!("{path}/exec"), body);
    let (status, answer) =
        exec(&json!({"cmd": "sh", "args": ["-c", "echo $A; pwd >&2; exit 3"], "envs": {"A": "b"}, "cwd": "/tmp"}));
    assert_eq!((status, &answer["stdout"], &answer["stderr"]), (200, &json!("b\n"), &json!("/tmp\n")));
    assert_eq!(
        (&answer["exit_code"], &answer["encoding"], &answer["sandbox_id"]),
        (&json!(3), &json!("utf-8"), &json!(id))
    );
    let (status, answer) = exec(&json!({"cmd": "true", "cwd": "/none"}));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_input")));
    let (_, answer) = exec(&json!({"cmd": "printf", "args": ["\\377"]}));
    assert_eq!(
        (&answer["stdout"], &answer["stderr"], &answer["encoding"]),
        (&json!("/w=="), &json!(""), &json!("base64"))
    );
    let (_, answer) = exec(&json!({"cmd": "sh", "args": ["-c", "kill -9 $$"]}));
    assert_eq!(answer["exit_code"], 137);
    let (status, answer) = exec(&json!({"cmd": "sleep", "args": ["60"], "timeout_sec": 1}));
    assert_eq!((status, &answer["error"]["code"]), (408, &json!("command_timed_out")), "{answer}");
    let (status, answer) = exec(&json!({"cmd": "no-such-program"}));
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("not_found")), "{answer}");
}

#[test]
fn a_restart_loses_nothing_and_a_kill_what_was_not_paused_alone() {
    if !can_run("a_restart_loses_nothing_and_a_kill_what_was_not_paused_alone") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let (runs, paused) = (sandbox(&client, &json!({})), sandbox(&client, &json!({})));
    run(&client, &runs, "echo kept > kept; (sleep 1000; echo) > /dev/null 2>&1 & echo $! > pid");
    assert_eq!(client.send("POST", &format!("/v1/sandboxes/{paused}/pause"), None).0, 200);
    server.stop();

    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let status = |client: &common::Client, id: &str| client.get(&format!("/v1/sandboxes/{id}")).1["status"].clone();
    assert_eq!((status(&client, &runs), status(&client, &paused)), (json!("running"), json!("paused")));
    assert_eq!(run(&client, &runs, "cat kept; kill -0 $(cat pid) && echo alive"), "kept\nalive");
    let second = common::output(dir.path(), &["serve", "--listen", "127.0.0.1:0"]);
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("another wrenn-server has"), "{said}");
    let fresh = sandbox(&client, &json!({}));
    server.kill();

    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    // It goes on from the pause of the restart.
    assert_eq!((status(&client, &runs), status(&client, &paused)), (json!("running"), json!("paused")));
    assert_eq!(run(&client, &runs, "cat kept"), "kept");
    let (_, answer) = client.get(&format!("/v1/sandboxes/{fresh}"));
    assert_eq!(
        (&answer["status"], &answer["reason"]),
        (&json!("stopped"), &json!("the server ended, and it had no pause"))
    );
    assert_eq!(client.send("POST", &format!("/v1/sandboxes/{paused}/resume"), None).0, 200);
    for id in [&runs, &paused] {
        assert_eq!(client.delete(&format!("/v1/sandboxes/{id}")), 204);
    }
    server.stop();
}

#[test]
fn a_delete_wins_against_whatever_is_under_way() {
    if !can_run("a_delete_wins_against_whatever_is_under_way") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--no-auth", "--standbys", "0"]);
    let client = server.client("");
    for under_way in ["resume", "pause", "fork", "exec"] {
        let id = sandbox(&client, &json!({}));
        let path = format!("/v1/sandboxes/{id}");
        if under_way == "resume" {
            assert_eq!(client.post(&format!("{path}/pause"), &json!({})).0, 200);
        }
        let body =
            if under_way == "exec" { json!({"cmd": "sleep", "args": ["60"], "timeout_sec": 90}) } else { json!({}) };
        let (other, route) = (client.clone(), format!("{path}/{under_way}"));
        let asking = std::thread::spawn(move || other.post(&route, &body));
        std::thread::sleep(std::time::Duration::from_millis(30));
        let began = std::time::Instant::now();
        assert_eq!(client.delete(&path), 204, "{under_way}");
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{under_way}: {:?}", began.elapsed());
        let (status, _) = asking.join().unwrap();
        assert!(under_way != "exec" || status == 409 || status == 502, "{under_way}: {status}");
        assert_eq!(client.get(&path).1["status"], "stopped", "{under_way}");
        assert_eq!(client.post(&format!("{path}/resume"), &json!({})).0, 409, "{under_way}");
    }
    let (_, all) = client.get("/v1/sandboxes");
    for child in all.as_array().unwrap() {
        assert_eq!(client.delete(&format!("/v1/sandboxes/{}", child["id"].as_str().unwrap())), 204);
    }
    assert_eq!(server.vmms(), [0; 0]);
    server.stop();
}

#[test]
fn files_go_in_and_out() {
    if !can_run("files_go_in_and_out") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--no-auth"]);
    let client = server.client("");
    let id = sandbox(&client, &json!({}));
    let route = |name: &str| format!("/v1/sandboxes/{id}/files/{name}");
    let big: Vec<u8> = (0..5_000_000_u32).map(|number| (number % 251) as u8).collect();
    for (name, fields) in [
        ("path first", [("path", &b"a/first"[..]), ("file", &big)]),
        ("file first", [("file", &big), ("path", &b"a/second"[..])]),
    ] {
        assert_eq!(client.form(&route("write"), &fields), (204, Value::Null), "{name}");
    }
    for path in ["a/first", "a/second"] {
        let (status, bytes) = client.read(&id, path);
        assert!(status == 200 && bytes == big, "{path}: {status}, {} bytes", bytes.len());
    }
    for fields in [
        &[("path", &b"a"[..])][..],
        &[("file", b"a")],
        &[],
        &[("path", b"a"), ("path", b"b"), ("file", b"c")],
        &[("file", b"a"), ("file", b"b"), ("path", b"c")],
        &[("other", b"a"), ("path", b"b"), ("file", b"c")],
        &[("path", b"\xff"), ("file", b"c")],
        &[("path", &[b'a'; 5000]), ("file", b"c")],
    ] {
        let (status, answer) = client.form(&route("write"), fields);
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_input")), "{fields:?}: {answer}");
    }
    assert_eq!(client.post(&route("write"), &json!({"path": "a"})).0, 400, "no form");

    assert_eq!(client.post(&route("mkdir"), &json!({"path": "a/b"})).0, 204);
    let (status, answer) = client.post(&route("mkdir"), &json!({"path": "a/b"}));
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("conflict")), "{answer}");
    // A path that can be one, and does not fit what lies there.
    for (what, path) in [("mkdir", "a/first"), ("list", "a/first"), ("read", "a/b")] {
        let (status, answer) = client.post(&route(what), &json!({"path": path}));
        assert_eq!((status, &answer["error"]["code"]), (409, &json!("refused")), "{what} {path}: {answer}");
    }
    let (status, answer) = client.form(&route("write"), &[("path", b"a/b"), ("file", b"c")]);
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("refused")), "{answer}");
    for path in [String::new(), "a\0b".to_owned(), "a".repeat(4096)] {
        let (status, answer) = client.post(&route("read"), &json!({"path": path}));
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_input")), "{answer}");
    }
    let (status, answer) = client.post(&route("list"), &json!({"path": "a"}));
    let mut found: Vec<(&str, &str, u64)> = answer
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (entry["name"].as_str().unwrap(), entry["type"].as_str().unwrap(), entry["size"].as_u64().unwrap())
        })
        .collect();
    found.sort_unstable();
    let len = big.len() as u64;
    assert_eq!((status, found.len(), found[1], found[2]), (200, 3, ("first", "file", len), ("second", "file", len)));
    assert_eq!(client.post(&route("remove"), &json!({"path": "a"})).0, 204);
    assert_eq!(client.post(&route("list"), &json!({"path": "a"})).0, 404);
    assert_eq!(client.read(&id, "a/first").0, 404);
    let (status, answer) = client.post(&route("list"), &json!({"path": "/root"}));
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("refused")), "{answer}");
    assert_eq!(client.post(&route("read"), &json!({"path": "a", "more": 1})).0, 400);
    server.stop();
}

#[test]
fn an_end_by_itself_is_told() {
    if !can_run("an_end_by_itself_is_told") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--no-auth"]);
    let client = server.client("");
    let (dies, sleeps) = (
        sandbox(&client, &json!({"timeout_sec": 1})),
        sandbox(&client, &json!({"timeout_sec": 1, "auto_pause": true})),
    );
    let told = |id: &str, wanted: &str| {
        for _ in 0..300 {
            let (_, answer) = client.get(&format!("/v1/sandboxes/{id}"));
            if answer["status"] == wanted {
                return answer;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{id} is not {wanted}: {}", client.get(&format!("/v1/sandboxes/{id}")).1);
    };
    assert_eq!(told(&dies, "stopped")["reason"], "its time-to-live was over");
    told(&sleeps, "paused");
    let fails = sandbox(&client, &json!({}));
    let exec = json!({"cmd": "sh", "args": ["-c", "echo c | sudo tee /proc/sysrq-trigger; sleep 60"]});
    assert_eq!(client.post(&format!("/v1/sandboxes/{fails}/exec"), &exec).0, 502);
    assert!(told(&fails, "error")["reason"].as_str().unwrap().starts_with("its virtual machine ended"));
    server.stop();
}

#[test]
fn bad_requests_get_the_right_answer() {
    if !can_run("bad_requests_get_the_right_answer") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    assert_eq!(server.client("").get("/healthz").0, 200);
    for bad in ["", "e2b_0000000000000000000000000000000000000000", &key[..20]] {
        for (method, path) in [("GET", "/v1/sandboxes"), ("POST", "/v1/sandboxes"), ("GET", "/v1/sandboxes/sb1")] {
            let (status, answer) = server.client(bad).send(method, path, None);
            assert_eq!((status, &answer["error"]["code"]), (401, &json!("unauthorized")), "{bad:?} {method} {path}");
        }
    }
    let giant = format!("{{\"template\": \"{}\"}}", "a".repeat(2 << 20));
    for (body, status, code) in [
        ("", 400, "invalid_input"),
        ("{", 400, "invalid_input"),
        ("[]", 400, "invalid_input"),
        ("null", 400, "invalid_input"),
        (r#"{"template": 1}"#, 400, "invalid_input"),
        (r#"{"templat": "base"}"#, 400, "invalid_input"),
        (r#"{"timeout_sec": 0}"#, 400, "invalid_input"),
        (r#"{"timeout_sec": -1}"#, 400, "invalid_input"),
        (r#"{"vcpus": 1000}"#, 400, "invalid_input"),
        (r#"{"memory_mb": 1}"#, 400, "invalid_input"),
        (r#"{"envs": {"A=B": "c"}}"#, 400, "invalid_input"),
        (r#"{"template": "../etc"}"#, 400, "invalid_input"),
        (r#"{"network": {"dns_servers": ["dns.example"]}}"#, 400, "invalid_input"),
        (r#"{"network": {"dns_servers": ["10.0.0.53"]}}"#, 400, "invalid_input"),
        (r#"{"network": {"dns_servers": ["127.0.0.53"], "allow": ["127.0.0.0/8"]}}"#, 400, "invalid_input"),
        (r#"{"network": {"egress_proxy": {"address": "10.0.0.1:1080"}}}"#, 400, "invalid_input"),
        (r#"{"vcpus": 33}"#, 400, "invalid_input"),
        (r#"["base", 1, 128, 60, false, {}, {}, false, {}]"#, 400, "invalid_input"),
        (r#"{"network": [true, [], [], {}, null, null, true, null, []]}"#, 400, "invalid_input"),
        (r#"{"network": {"egress_proxy": {"address": "a.example:1080", "tls": [null, null]}}}"#, 400, "invalid_input"),
        (r#"{"memory_mb": 512.5}"#, 400, "invalid_input"),
        (r#"{"network": {"egress_proxy": {"address": "a.example:1080", "username": "ada"}}}"#, 400, "invalid_input"),
        (r#"{"template": "nowhere"}"#, 404, "not_found"),
        (&giant, 413, "too_large"),
    ] {
        let (is, answer) = client.send("POST", "/v1/sandboxes", Some(body));
        let begin = &body[..body.len().min(40)];
        assert_eq!((is, answer["error"]["code"].as_str()), (status, Some(code)), "{begin}: {answer}");
        assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
    }
    let plain = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    assert_eq!(client.raw(plain.as_bytes()).0, 415);
    for id in ["sb0000000000000000", "x", "..%2f..%2fetc", "%00", "sb0000000000000000%0d%0aX: y", "\u{e9}"] {
        for (method, route) in [("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/ping")]
        {
            let path = format!("/v1/sandboxes/{id}{route}");
            let (status, _) = client.send(method, &path.replace('\u{e9}', "%e9").replace(' ', "%20"), None);
            assert!(matches!(status, 400 | 404), "{method} {path}: {status}");
        }
    }
    assert_eq!(client.get("/v1/nowhere").0, 404);
    let (status, answer) = client.send("PUT", "/v1/sandboxes", None);
    assert_eq!((status, &answer["error"]["code"]), (405, &json!("method_not_allowed")));
    assert_eq!(client.get("/v1/sandboxes").1, json!([]), "nothing was made");
    let open = common::output(dir.path(), &["serve", "--listen", "0.0.0.0:0", "--no-auth"]);
    assert!(!open.status.success() && String::from_utf8_lossy(&open.stderr).contains("127.0.0.1"));
    server.stop();
}

#[test]
fn what_was_kept_goes_on_after_a_kill() {
    if !can_run("what_was_kept_goes_on_after_a_kill") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &["--checkpoint-every", "1"]);
    let client = server.client(&key);
    let id = sandbox(&client, &json!({}));
    run(
        &client,
        &id,
        "echo kept > kept; (while sleep 0.05; do echo tick >> ticks; done) > /dev/null 2>&1 & echo $! > pid",
    );
    std::thread::sleep(std::time::Duration::from_secs(4));
    let seen: u32 = run(&client, &id, "wc -l < ticks").trim().parse().unwrap();
    server.kill();

    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    assert_eq!(client.get(&format!("/v1/sandboxes/{id}")).1["status"], "running");
    assert_eq!(run(&client, &id, "cat kept; kill -0 $(cat pid) && echo alive"), "kept\nalive");
    std::thread::sleep(std::time::Duration::from_secs(1));
    let now: u32 = run(&client, &id, "wc -l < ticks").trim().parse().unwrap();
    assert!(now > 0 && seen > 0, "{seen} {now}");
    // A kill removes what was kept.
    assert_eq!(client.delete(&format!("/v1/sandboxes/{id}")), 204);
    server.kill();
    let server = Server::start(dir.path(), &[]);
    assert_eq!(server.client(&key).get(&format!("/v1/sandboxes/{id}")).1["status"], "stopped");
    server.stop();
}

#[test]
fn what_runs_is_paused_where_memory_is_short() {
    if !can_run("what_runs_is_paused_where_memory_is_short") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let ids = [(); 2].map(|()| sandbox(&client, &json!({"timeout_sec": 3600})));
    server.stop();
    // No machine has so much.
    let server = Server::start(dir.path(), &["--pause-below-mib", "1000000000"]);
    let client = server.client(&key);
    let is_paused = |id: &String| client.get(&format!("/v1/sandboxes/{id}")).1["status"] == "paused";
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !ids.iter().all(is_paused) {
        assert!(std::time::Instant::now() < deadline, "none is paused");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(client.send("POST", &format!("/v1/sandboxes/{}/resume", ids[0]), None).0, 200, "it can be had again");
    server.stop();
}

#[test]
fn a_key_has_its_limits() {
    if !can_run("a_key_has_its_limits") {
        return;
    }
    let dir = data_dir();
    let key = |terms: &[&str]| {
        let output = common::output(dir.path(), &[&["keys", "create", "ada"], terms].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let (few, looks, slow) = (
        key(&["--max-sandboxes", "1", "--max-memory-mib", "512"]),
        key(&["--read-only"]),
        key(&["--max-requests-per-second", "3"]),
    );
    let over = key(&["--days", "0"]);
    let server = Server::start(dir.path(), &["--queue-seconds", "1", "--vcpus-times", "1"]);
    let code =
        |(status, answer): (u16, Value)| (status, answer["error"]["code"].as_str().unwrap_or_default().to_owned());
    let create = |client: &common::Client, body: &Value| code(client.post("/v1/sandboxes", body));

    let client = server.client(&few);
    assert_eq!(create(&client, &json!({"memory_mb": 1024})), (429, "limit_reached".to_owned()));
    let id = sandbox(&client, &json!({}));
    assert_eq!(create(&client, &json!({})), (429, "limit_reached".to_owned()));
    assert_eq!(client.post(&format!("/v1/sandboxes/{id}/fork"), &json!({})).1[0]["error"]["code"], "limit_reached");
    // What is paused takes none of it.
    assert_eq!(client.send("POST", &format!("/v1/sandboxes/{id}/pause"), None).0, 200);
    let other = sandbox(&client, &json!({}));
    assert_eq!(
        code(client.send("POST", &format!("/v1/sandboxes/{id}/resume"), None)),
        (429, "limit_reached".to_owned())
    );
    assert_eq!(client.delete(&format!("/v1/sandboxes/{other}")), 204);
    assert_eq!(client.send("POST", &format!("/v1/sandboxes/{id}/resume"), None).0, 200);

    let client = server.client(&looks);
    assert_eq!(client.get("/v1/sandboxes").0, 200);
    assert_eq!(create(&client, &json!({})), (403, "forbidden".to_owned()));
    let client = server.client(&slow);
    let answers: Vec<u16> = (0..8).map(|_| client.get("/v1/sandboxes").0).collect();
    assert!(answers.contains(&200) && answers.contains(&429), "{answers:?}");
    assert_eq!(server.client(&over).get("/v1/sandboxes").0, 401);

    // This machine has no more processors than it has.
    let client = server.client(&key(&[]));
    let processors = std::thread::available_parallelism().unwrap().get();
    assert_eq!(create(&client, &json!({"vcpus": processors + 1})), (400, "invalid_input".to_owned()));
    for _ in 1..processors {
        sandbox(&client, &json!({}));
    }
    assert_eq!(create(&client, &json!({})), (503, "full".to_owned()));
    // Ten that find no room wait once.
    let begun = std::time::Instant::now();
    let (_, all) = server.client(&few).post(&format!("/v1/sandboxes/{id}/fork"), &json!({"count": 10}));
    assert!(all.as_array().unwrap().iter().all(|one| one["error"]["code"] == "limit_reached"), "{all}");
    let own = client.get("/v1/sandboxes?status=running").1[0]["id"].as_str().unwrap().to_owned();
    let (_, all) = client.post(&format!("/v1/sandboxes/{own}/fork"), &json!({"count": 10}));
    let codes: Vec<_> = all.as_array().unwrap().iter().map(|one| one["error"]["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["full"; 10]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    server.stop();
}

#[test]
fn a_connection_outlives_the_answer_of_an_old_server() {
    if !can_run("a_connection_outlives_the_answer_of_an_old_server") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--no-auth"]);
    let client = server.client("");
    let id = sandbox(&client, &json!({"timeout_sec": 3600}));
    // It speaks HTTP/1.0.
    run(
        &client,
        &id,
        "mkdir /tmp/www; echo hello > /tmp/www/a; cd /tmp/www; python3 -m http.server 8000 > /dev/null 2>&1 &",
    );
    let path = format!("/v1/sandboxes/{id}/ports/8000/a");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while client.get(&path).0 != 200 {
        assert!(std::time::Instant::now() < deadline, "the server does not come up");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    for _ in 0..3 {
        std::io::Write::write_all(&mut stream, format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes())
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello\n") {
            let mut piece = [0; 4096];
            let read = std::io::Read::read(&mut stream, &mut piece).unwrap();
            assert!(read > 0, "it was closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..read]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    server.stop();
}
