//! A server that is killed at any moment, as by a want of memory.

mod common;

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use common::{Client, Server, can_run, data_dir, new_key, run};

/// What a client does over and over until its server is gone.
fn work(client: &Client, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let ask = |method: &str, path: &str, body: &Value| client.attempt(method, path, body);
    let mut round = || {
        let (status, made) = ask("POST", "/v1/sandboxes", &json!({}))?;
        assert_eq!(status, 201, "{made}");
        let path = format!("/v1/sandboxes/{}", made["id"].as_str()?);
        ask("POST", &format!("{path}/exec"), &json!({"cmd": "true"}))?;
        if random.random() {
            ask("POST", &format!("{path}/pause"), &json!({}))?;
            if random.random() {
                ask("POST", &format!("{path}/resume"), &json!({}))?;
            }
        } else {
            ask("POST", &format!("{path}/fork"), &json!({}))?;
        }
        if random.random() {
            ask("DELETE", &path, &json!({}))?;
        }
        Some(())
    };
    while round().is_some() {}
}

/// Each record says what is.
fn check(client: &Client) -> Vec<String> {
    let (status, all) = client.get("/v1/sandboxes");
    assert_eq!(status, 200, "{all}");
    let mut statuses = Vec::new();
    for (number, one) in all.as_array().into_iter().flatten().enumerate() {
        let id = one["id"].as_str().unwrap_or_default();
        let status = one["status"].as_str().unwrap_or_default().to_owned();
        let path = format!("/v1/sandboxes/{id}");
        match &*status {
            "running" => assert_eq!(run(client, id, "echo here"), "here"),
            // Some of many.
            "paused" if number % 4 == 0 => {
                assert_eq!(client.post(&format!("{path}/resume"), &json!({})).0, 200, "{one}");
                assert_eq!(run(client, id, "echo here"), "here");
            }
            "paused" => {}
            "stopped" => {
                assert!(one["reason"].is_string(), "{one}");
                assert_eq!(client.post(&format!("{path}/resume"), &json!({})).0, 409, "{one}");
            }
            _ => panic!("{one}"),
        }
        statuses.push(status);
    }
    statuses
}

#[test]
fn after_a_kill_at_any_moment_the_records_are_true_and_nothing_is_left_running() {
    if !can_run("after_a_kill_at_any_moment_the_records_are_true_and_nothing_is_left_running") {
        return;
    }
    let kills = std::env::var("WRENN_TEST_KILLS").map_or(3, |kills| kills.parse().expect("a number"));
    let seed =
        std::env::var("WRENN_TEST_SEED").map_or_else(|_| rand::rng().random(), |seed| seed.parse().expect("a number"));
    println!("WRENN_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    for _ in 0..kills {
        let server = Server::start(dir.path(), &[]);
        let client = server.client(&key);
        println!("{:?}", check(&client));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (client, seed) = (client.clone(), random.random());
                std::thread::spawn(move || work(&client, seed))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(random.random_range(500..6000)));
        let vmms = server.vmms();
        server.kill();
        for worker in workers {
            worker.join().expect("what it was answered was right");
        }
        let began = Instant::now();
        while vmms.iter().any(|pid| std::fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            assert!(began.elapsed() < Duration::from_secs(10), "a machine outlives its server");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let server = Server::start(dir.path(), &["--standbys", "0"]);
    let client = server.client(&key);
    println!("{:?}", check(&client));
    let (_, all) = client.get("/v1/sandboxes");
    for one in all.as_array().into_iter().flatten() {
        assert_eq!(client.delete(&format!("/v1/sandboxes/{}", one["id"].as_str().unwrap_or_default())), 204);
    }
    assert_eq!(server.vmms(), [0; 0]);
    server.stop();
}
