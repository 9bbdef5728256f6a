//! What an operator sees of a server: whether it is ready, what it counts, and its log.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;
mod exposition;
mod postgres;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use common::{Server, can_run, data_dir, new_key, run, sandbox, wrenn_server};
use exposition::Exposition;

#[test]
fn it_is_ready_while_its_records_answer() {
    if !can_run("it_is_ready_while_its_records_answer") {
        return;
    }
    let mut postgres = match postgres::Server::start() {
        Ok(postgres) => postgres,
        Err(why) => {
            return writeln!(std::io::stderr(), "skipped: it_is_ready_while_its_records_answer: {why}").unwrap();
        }
    };
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--no-auth", "--database-url", &postgres.url()]);
    let client = server.client("");
    assert_eq!(client.get("/readyz"), (200, json!({"ready": true})));
    postgres.kill();
    let (status, answer) = client.get("/readyz");
    assert_eq!((status, &answer["ready"], &answer["lacks"][0]["code"]), (503, &json!(false), &json!("records")));
    assert_eq!(client.get("/healthz").0, 200, "it is alive");
    postgres.restart();
    until("it is ready again", || client.get("/readyz").0 == 200);
    server.stop();
}

#[test]
fn a_server_that_drains_serves_and_is_not_ready() {
    if !can_run("a_server_that_drains_serves_and_is_not_ready") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--no-auth", "--drain-seconds", "600"]);
    let client = server.client("");
    let id = sandbox(&client, &json!({}));
    assert_eq!(client.get("/readyz").0, 200);
    server.signal(Signal::SIGTERM);
    until("it is not ready", || client.get("/readyz").0 == 503);
    assert_eq!(client.get("/readyz").1["lacks"][0]["code"], "leaving");
    assert_eq!(run(&client, &id, "echo here"), "here");
    assert_eq!(client.get("/healthz").0, 200);
    // A second signal: what runs is paused at once.
    server.stop();
    let server = Server::start(dir.path(), &["--no-auth"]);
    assert_eq!(run(&server.client(""), &id, "echo again"), "again");
    assert_eq!(server.client("").delete(&format!("/v1/sandboxes/{id}")), 204);
    server.stop();
}

#[test]
fn metrics_tell_what_was_done() {
    if !can_run("metrics_tell_what_was_done") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&key);
    let (one, other) = (sandbox(&client, &json!({})), sandbox(&client, &json!({})));
    assert_eq!(client.post("/v1/sandboxes", &json!({"vcpus": 30, "memory_mb": 4_000_000})).0, 400);
    for line in ["true", "echo some; exit 0", "true"] {
        run(&client, &one, line);
    }
    let exec = |body: &Value| client.post(&format!("/v1/sandboxes/{one}/exec"), body).0;
    assert_eq!(exec(&json!({"cmd": "sleep", "args": ["60"], "timeout_sec": 1})), 408);
    assert_eq!(exec(&json!({"cmd": "no-such-program"})), 404);
    let act = |what: &str| client.post(&format!("/v1/sandboxes/{other}/{what}"), &json!({})).0;
    assert_eq!((act("pause"), act("pause"), act("resume"), act("fork"), act("pause")), (200, 409, 200, 201, 200));
    assert_eq!(client.get(&format!("/v1/sandboxes/{one}/ports/9/")).0, 502, "nothing listens there");
    assert_eq!(client.get("/v1/no-such-route").0, 404);
    let expires = sandbox(&client, &json!({"timeout_sec": 1}));
    until("its time is over", || client.get(&format!("/v1/sandboxes/{expires}")).1["status"] == "stopped");

    let told = metrics(server.address);
    let done = |work, outcome| told.value("wrenn_operations_total", &[("operation", work), ("outcome", outcome)]);
    assert_eq!((done("create", "ok"), done("create", "refused")), (3.0, 1.0));
    assert_eq!((done("exec", "ok"), done("exec", "timed_out"), done("exec", "refused")), (3.0, 1.0, 1.0));
    assert_eq!(
        (done("pause", "ok"), done("resume", "ok"), done("fork", "ok"), done("kill", "ok")),
        (2.0, 1.0, 1.0, 0.0)
    );
    assert_eq!(told.value("wrenn_operation_duration_seconds_count", &[("operation", "create")]), 3.0);
    assert_eq!(told.value("wrenn_expiries_total", &[]), 1.0);
    assert_eq!(told.value("wrenn_ends_total", &[("reason", "expired")]), 1.0);
    assert_eq!(told.value("wrenn_admission_queue", &[]), 0.0);
    assert_eq!(told.value("wrenn_admission_refusals_total", &[("reason", "too_large")]), 1.0);
    assert_eq!(told.value("wrenn_proxied_requests_total", &[("outcome", "unreached")]), 1.0);
    assert_eq!(told.value("wrenn_sandboxes", &[("state", "running")]), 2.0, "the first one, and a fork");
    assert_eq!(told.value("wrenn_sandboxes", &[("state", "paused")]), 1.0);
    assert!(told.value("wrenn_page_faults_total", &[]) + told.value("wrenn_restored_bytes_total", &[]) > 0.0);
    let id = &key[4..12];
    let (vcpus, memory) = (
        told.value("wrenn_usage_vcpu_seconds_total", &[("key", id)]),
        told.value("wrenn_usage_memory_mib_seconds_total", &[("key", id)]),
    );
    assert!(vcpus > 1.0 && memory > 512.0, "{vcpus} {memory}");
    let answered = |route, method, status| {
        let labels = [("route", route), ("method", method), ("status", status)];
        told.value("wrenn_http_request_duration_seconds_count", &labels)
    };
    assert_eq!((answered("/v1/sandboxes", "POST", "2xx"), answered("/v1/sandboxes", "POST", "4xx")), (3.0, 1.0));
    assert_eq!(answered("/v1/sandboxes/{id}/exec", "POST", "2xx"), 3.0);
    assert_eq!((answered("none", "GET", "4xx"), answered("port", "GET", "5xx")), (1.0, 1.0));
    assert!(!told.values_of("route").iter().any(|route| route.contains(&one)), "no label is a path");
    assert!(told.value("process_open_fds", &[]) > 3.0 && told.value("process_resident_memory_bytes", &[]) > 1e6);

    // A look again counts on.
    std::thread::sleep(Duration::from_millis(300));
    let later = metrics(server.address);
    assert!(later.value("wrenn_usage_vcpu_seconds_total", &[("key", id)]) > vcpus);
    for name in names_in(include_str!("../deploy/grafana.json")) {
        assert!(later.has(&name), "{name} is in the dashboard, and is not told");
    }
    for id in [&one, &other] {
        assert_eq!(client.delete(&format!("/v1/sandboxes/{id}")), 204);
    }
    let kills = [("operation", "kill"), ("outcome", "ok")];
    assert_eq!(metrics(server.address).value("wrenn_operations_total", &kills), 2.0);
    server.stop();
}

#[test]
fn the_dashboard_shows_each_metric_that_the_page_of_operators_names() {
    let (page, dashboard) = (include_str!("../../docs/deployment.md"), include_str!("../deploy/grafana.json"));
    let named: Vec<&str> = page.split('`').filter(|text| text.starts_with("wrenn_") && !text.contains('{')).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in named {
        assert!(dashboard.contains(name), "{name} is in docs/deployment.md, and not in the dashboard");
    }
}

#[test]
fn metrics_are_for_this_machine_and_for_an_operators_key() {
    if !can_run("metrics_are_for_this_machine_and_for_an_operators_key") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &[]);
    let status = |headers: &str| ask(server.address, "GET", "/metrics", headers, "").0;
    assert_eq!(status(""), 200);
    let passed_on = "X-Forwarded-For: 10.0.0.1\r\n";
    assert_eq!(status(passed_on), 401);
    assert_eq!(status(&format!("{passed_on}X-API-Key: {key}\r\n")), 401, "it tells of other keys, too");
    let operators = common::output(dir.path(), &["keys", "create", "ops", "--operator"]);
    let operators = String::from_utf8(operators.stdout).unwrap().trim().to_owned();
    assert_eq!(status(&format!("{passed_on}X-API-Key: {operators}\r\n")), 200);
    assert_eq!(status(&format!("{passed_on}Authorization: Bearer {operators}\r\n")), 200);
    // The agent of a sandbox has a route of that name too, and its token says that it is meant.
    let headers = format!("X-API-Key: {key}\r\n");
    let (created, _, body) =
        ask(server.address, "POST", "/sandboxes", &headers, r#"{"templateID": "base", "secure": true}"#);
    assert_eq!(created, 201, "{body}");
    let made: Value = serde_json::from_str(&body).unwrap();
    let token = format!("X-Access-Token: {}\r\n", made["envdAccessToken"].as_str().unwrap());
    let (status, _, body) = ask(server.address, "GET", "/metrics", &token, "");
    assert!(status == 200 && body.contains("cpu_count"), "{status} {body}");
    assert_eq!(server.client(&key).delete(&format!("/v1/sandboxes/{}", made["sandboxID"].as_str().unwrap())), 204);
    server.stop();
}

#[test]
fn the_log_has_the_name_of_a_request_and_no_secret() {
    if !can_run("the_log_has_the_name_of_a_request_and_no_secret") {
        return;
    }
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let path = dir.path().join("log");
    let server = logged(dir.path(), &path);
    let token = work(&server, &key);
    server.stop();

    let log = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for (request, event) in [
        ("made-by-test", "created"),
        ("paused-by-test", "paused"),
        ("resumed-by-test", "resumed"),
        ("killed-by-test", "killed"),
        ("made-for-e2b", "created"),
        ("killed-for-e2b", "killed"),
    ] {
        let is_it = |line: &&Value| line["target"] == "audit" && line["event"] == event && of_request(line, request);
        let line =
            lines.iter().find(is_it).unwrap_or_else(|| panic!("no line says that {request} has {event} it:\n{log}"));
        assert_eq!((&line["level"], line["timestamp"].is_string()), (&json!("INFO"), true), "{line}");
    }
    let of_core = |line: &&Value| {
        line["target"].as_str().is_some_and(|target| target.starts_with("wrenn_core"))
            && of_request(line, "made-by-test")
    };
    assert!(lines.iter().any(|line| of_core(&line)), "no line of the library has the name of a request");
    let is_answer = |line: &&Value| line["route"] == "/v1/sandboxes/{id}/exec" && of_request(line, "run_by-test");
    let answer = lines.iter().find(is_answer).expect("a line of the request");
    assert_eq!(
        (&answer["level"], &answer["status"], &answer["method"]),
        (&json!("DEBUG"), &json!(200), &json!("POST"))
    );
    let secrets = [
        &key[12..],
        &token,
        "env-of-sandbox",
        "env-of-exec",
        "env-of-e2b",
        "header-of-network",
        "argument-of-exec",
        "secret-of-query",
        "secret-of-path",
    ];
    for secret in secrets {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret:?} is a secret");
    }
}

/// Has requests of known names do what is logged, with a secret in each place where there may be one. Returns the token of
/// one that was made for E2B's clients.
fn work(server: &Server, key: &str) -> String {
    let send = |id: &str, method: &str, path: &str, body: &str| {
        let headers = format!("X-API-Key: {key}\r\nX-Request-Id: {id}\r\n");
        ask(server.address, method, path, &headers, body)
    };
    let named = |head: &str| head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap().to_owned();
    let network = json!({"headers": {"example.com": {"X-Secret": "header-of-network"}}});
    let wanted = json!({"envs": {"A": "env-of-sandbox"}, "network": network}).to_string();
    let (status, head, body) = send("made-by-test", "POST", "/v1/sandboxes", &wanted);
    assert_eq!((status, &*named(&head)), (201, "made-by-test"), "{body}");
    let made: Value = serde_json::from_str(&body).unwrap();
    let at = format!("/v1/sandboxes/{}", made["id"].as_str().unwrap());
    let exec = json!({"cmd": "sh", "args": ["-c", "echo argument-of-exec"], "envs": {"B": "env-of-exec"}}).to_string();
    assert_eq!(send("run_by-test", "POST", &format!("{at}/exec"), &exec).0, 200);
    assert_eq!(send("paused-by-test", "POST", &format!("{at}/pause"), "").0, 200);
    assert_eq!(send("resumed-by-test", "POST", &format!("{at}/resume"), "").0, 200);
    assert_eq!(send("killed-by-test", "DELETE", &at, "").0, 204);
    let (_, head, _) = send("not sane {}", "GET", "/v1/sandboxes?token=secret-of-query", "");
    assert!(named(&head).len() == 32 && named(&head).bytes().all(|byte| byte.is_ascii_hexdigit()), "{head}");
    assert_eq!(send("nowhere", "GET", "/secret-of-path?signature=secret-of-query", "").0, 404);
    let wanted = r#"{"templateID": "base", "secure": true, "envVars": {"C": "env-of-e2b"}}"#;
    let (status, _, body) = send("made-for-e2b", "POST", "/sandboxes", wanted);
    assert_eq!(status, 201, "{body}");
    let made: Value = serde_json::from_str(&body).unwrap();
    let token = made["envdAccessToken"].as_str().unwrap().to_owned();
    let (id, headers) = (made["sandboxID"].as_str().unwrap(), format!("X-Access-Token: {token}\r\n"));
    assert_eq!(ask(server.address, "GET", "/metrics", &headers, "").0, 200);
    let signed = "/files?path=/etc/hostname&username=root&signature=v1_secret-of-query";
    ask(server.address, "GET", signed, &format!("E2b-Sandbox-Id: {id}\r\n"), "");
    assert_eq!(send("killed-for-e2b", "DELETE", &format!("/sandboxes/{id}"), "").0, 204);
    token
}

/// A server that logs all that it says as JSON into a file.
fn logged(data_dir: &Path, log: &Path) -> Server {
    let mut command = wrenn_server(data_dir, &["serve", "--listen", "127.0.0.1:0"]);
    command
        .env("WRENN_LOG_FORMAT", "json")
        .env("RUST_LOG", "debug,wrenn_core=trace,wrenn_net=trace,wrenn_server=trace");
    command.stderr(File::create(log).unwrap());
    Server::spawn(command)
}

fn of_request(line: &Value, request: &str) -> bool {
    line["spans"].as_array().is_some_and(|spans| spans.iter().any(|span| span["request_id"] == request))
}

/// The status, the head in small letters, and the body.
fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let typed = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}{typed}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

fn metrics(address: SocketAddr) -> Exposition {
    let (status, head, body) = ask(address, "GET", "/metrics", "", "");
    assert!(status == 200 && head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    Exposition::of(&body)
}

/// The names of metrics in the queries of a dashboard.
fn names_in(dashboard: &str) -> Vec<String> {
    let dashboard: Value = serde_json::from_str(dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let queries: Vec<String> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    assert!(queries.len() > 10, "{queries:?}");
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = queries.iter().flat_map(|query| query.split(move |letter| !is_word(letter)));
    let mut names: Vec<String> =
        words.filter(|word| word.starts_with("wrenn_") || word.starts_with("process_")).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
