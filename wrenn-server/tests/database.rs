//! A database that goes away: requests fail with a reason, sandboxes go on, and records catch up.

mod common;
mod postgres;

use std::time::{Duration, Instant};

use serde_json::json;

use common::{Server, can_run, data_dir, run, sandbox};

#[test]
fn sandboxes_outlive_their_database() {
    const TEST: &str = "sandboxes_outlive_their_database";
    if !can_run(TEST) {
        return;
    }
    let mut database = match postgres::Server::start() {
        Ok(database) => database,
        Err(reason) => return println!("skipped: {TEST}: {reason}"),
    };
    let dir = data_dir();
    let url = database.url();
    let key = common::output(dir.path(), &["--database-url", &url, "keys", "create", "ada"]);
    let key = String::from_utf8(key.stdout).unwrap().trim().to_owned();
    let server = Server::start(dir.path(), &["--database-url", &url, "--standbys", "0"]);
    let client = server.client(&key);
    let (kept, ended) =
        (sandbox(&client, &json!({"timeout_sec": 3600})), sandbox(&client, &json!({"timeout_sec": 3600})));
    let writer = "(while :; do date +%s%N > new; mv new now; sleep 0.1; done) > /dev/null 2>&1 &";
    run(&client, &kept, &format!("{writer} until [ -e now ]; do sleep 0.1; done"));

    database.kill();
    let begun = Instant::now();
    let (status, answer) = client.get("/v1/sandboxes");
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("no_records")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("DATABASE_URL"), "{answer}");
    let (status, _) = client.post("/v1/sandboxes", &json!({}));
    assert_eq!(status, 503);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    // One ends while nothing can be noted.
    let vmms = server.vmms();
    assert_eq!(vmms.len(), 2, "{vmms:?}");

    database.restart();
    let deadline = Instant::now() + Duration::from_secs(60);
    while client.get("/v1/sandboxes").0 != 200 {
        assert!(Instant::now() < deadline, "the server does not find its database again");
        std::thread::sleep(Duration::from_millis(100));
    }
    let before = run(&client, &kept, "cat now");
    std::thread::sleep(Duration::from_millis(500));
    assert_ne!(before, run(&client, &kept, "cat now"), "it goes on");
    assert_eq!(client.delete(&format!("/v1/sandboxes/{ended}")), 204);
    assert_eq!(client.get(&format!("/v1/sandboxes/{ended}")).1["status"], "stopped");
    server.stop();

    // The next server finds its records there as well.
    let server = Server::start(dir.path(), &["--database-url", &url]);
    let client = server.client(&key);
    assert_eq!(client.get(&format!("/v1/sandboxes/{kept}")).1["status"], "running");
    assert_ne!(run(&client, &kept, "cat now"), before);
    server.stop();
}
