//! Snapshots by the native API, with real guests.

mod common;

use serde_json::{Value, json};

use common::{Client, Server, can_run, data_dir, new_key, run, sandbox};

#[test]
fn a_snapshot_is_its_keys_alone() {
    if !can_run("a_snapshot_is_its_keys_alone") {
        return;
    }
    let dir = data_dir();
    let (ada, eve) = (new_key(dir.path(), "ada"), new_key(dir.path(), "eve"));
    let server = Server::start(dir.path(), &[]);
    let (ada, eve) = (server.client(&ada), server.client(&eve));
    let id = sandbox(&ada, &json!({}));
    run(&ada, &id, "echo warm > state");
    let snapshot = |client: &Client, name: &str| client.post("/v1/snapshots", &json!({"sandbox_id": id, "name": name}));
    let (status, answer) = snapshot(&ada, "warm");
    assert_eq!((status, &answer["name"], &answer["type"]), (201, &json!("warm"), &json!("snapshot")), "{answer}");
    assert_eq!((&answer["vcpus"], &answer["memory_mb"]), (&json!(1), &json!(512)));
    assert_eq!(snapshot(&ada, "warm").0, 409);
    assert_eq!(snapshot(&ada, "../warm").0, 400);
    assert_eq!(snapshot(&eve, "hers").0, 404, "it is not her sandbox");
    let copy = sandbox(&ada, &json!({"template": "warm"}));
    assert_eq!(run(&ada, &copy, "cat state"), "warm");
    let (status, _) = ada.post("/v1/sandboxes", &json!({"template": "warm", "memory_mb": 1024}));
    assert_eq!(status, 400, "a snapshot's memory is what it is");

    let names = |client: &Client, query: &str| {
        let (status, answer) = client.get(&format!("/v1/snapshots{query}"));
        assert_eq!(status, 200, "{answer}");
        let names = answer.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&ada, ""), ["base", "warm"]);
    assert_eq!((names(&ada, "?type=snapshot"), names(&eve, "")), (vec!["warm".to_owned()], vec!["base".to_owned()]));
    assert_eq!(ada.get("/v1/snapshots?type=other").0, 400);
    let listed = common::output(dir.path(), &["templates", "list"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(
        listed.lines().collect::<Vec<_>>(),
        ["image     -         base".to_owned(), format!("snapshot  {}  warm  on base", &ada.key[4..12])]
    );
    assert_eq!(eve.post("/v1/sandboxes", &json!({"template": "warm"})).0, 404);
    for name in ["warm", "base", "nowhere", "..%2fwarm"] {
        assert_eq!(eve.delete(&format!("/v1/snapshots/{name}")), 404, "{name}");
    }
    assert_eq!((ada.delete("/v1/snapshots/base"), ada.delete("/v1/snapshots/warm")), (404, 204));
    assert_eq!((ada.delete("/v1/snapshots/warm"), names(&ada, "")), (404, vec!["base".to_owned()]));
    assert_eq!(run(&ada, &copy, "cat state"), "warm", "what was made of it stays");
    server.stop();
}

/// Asks for a snapshot of this name, with what follows `?`.
fn snapshot(client: &Client, sandbox: &str, name: &str, query: &str) -> (u16, Value) {
    client.post(&format!("/v1/snapshots{query}"), &json!({"sandbox_id": sandbox, "name": name}))
}

#[test]
fn a_snapshot_is_replaced_where_that_is_asked_for_by_its_own_key() {
    if !can_run("a_snapshot_is_replaced_where_that_is_asked_for_by_its_own_key") {
        return;
    }
    let dir = data_dir();
    let (ada, eve) = (new_key(dir.path(), "ada"), new_key(dir.path(), "eve"));
    let server = Server::start(dir.path(), &[]);
    let (client, other) = (server.client(&ada), server.client(&eve));
    let id = sandbox(&client, &json!({}));
    run(&client, &id, "echo first > state; head -c 5000000 /dev/urandom > big; sync");
    let (status, first) = snapshot(&client, &id, "warm", "?overwrite=true");
    assert_eq!((status, &first["name"]), (201, &json!("warm")), "nothing is there to replace: {first}");
    assert!(first["size_bytes"].as_u64().unwrap() > 5_000_000, "{first}");
    assert_eq!(client.post("/templates/tags", &json!({"target": "warm", "tags": ["app:stable"]})).0, 201);
    let of_first = sandbox(&client, &json!({"template": "warm"}));

    run(&client, &id, "echo second > state");
    for query in ["", "?overwrite=false"] {
        let (status, answer) = snapshot(&client, &id, "warm", query);
        assert_eq!((status, &answer["error"]["code"]), (409, &json!("already_exists")), "{answer}");
    }
    assert_eq!(snapshot(&client, &id, "warm", "?overwrite=perhaps").0, 400);
    let (status, second) = snapshot(&client, &id, "warm", "?overwrite=true");
    assert_eq!((status, &second["type"]), (201, &json!("snapshot")), "{second}");
    assert!(second["created_at"].as_str() > first["created_at"].as_str(), "{first} {second}");
    for template in ["warm", "app:stable"] {
        let of_second = sandbox(&client, &json!({"template": template}));
        assert_eq!(run(&client, &of_second, "cat state"), "second", "{template}");
        assert_eq!(client.delete(&format!("/v1/sandboxes/{of_second}")), 204);
    }
    assert_eq!(run(&client, &of_first, "cat state"), "first", "what was made of the former one stays");

    // What is everybody's and what is another's are not replaced.
    assert_eq!(snapshot(&client, &id, "base", "?overwrite=true").0, 409);
    let hers = sandbox(&other, &json!({}));
    assert_eq!(snapshot(&other, &hers, "warm", "?overwrite=true").0, 409);
    assert_eq!(snapshot(&other, &id, "warm", "?overwrite=true").0, 404, "it is not her sandbox");
    server.stop();

    let server = Server::start(dir.path(), &[]);
    let client = server.client(&ada);
    let (_, all) = client.get("/v1/snapshots");
    let size =
        |name: &str| all.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap()["size_bytes"].clone();
    assert_eq!((size("base"), all.as_array().unwrap().len()), (Value::Null, 2), "{all}");
    assert!(size("warm").as_u64().unwrap() > 5_000_000, "{all}");
    let of_second = sandbox(&client, &json!({"template": "warm"}));
    assert_eq!(run(&client, &of_second, "cat state"), "second");
    assert_eq!((client.delete("/v1/snapshots/warm"), client.delete("/v1/snapshots/warm")), (204, 404));
    server.stop();
}

#[test]
fn of_what_is_stored_together_at_a_limit_one_reaches_it_and_the_others_are_refused() {
    if !can_run("of_what_is_stored_together_at_a_limit_one_reaches_it_and_the_others_are_refused") {
        return;
    }
    let dir = data_dir();
    let made = common::output(dir.path(), &["keys", "create", "ada", "--max-stored-mib", "20"]);
    let ada = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&ada);
    let ids: Vec<String> = (0..4).map(|_| sandbox(&client, &json!({"timeout_sec": 600}))).collect();
    for id in &ids {
        run(&client, id, "head -c 30000000 /dev/urandom > big; sync");
    }
    // A build that began while there was room.
    let steps = json!([{"type": "run", "cmd": "head -c 1000 /dev/urandom > a; sleep 15"}]);
    let build = client.post("/v1/builds", &json!({"name": "app", "steps": steps})).1;
    let build = format!("/v1/builds/{}", build["id"].as_str().unwrap_or_else(|| panic!("{build}")));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while client.get(&build).1["status"] == "waiting" {
        assert!(std::time::Instant::now() < deadline, "it does not begin");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let works = ids.iter().enumerate().map(|(number, id)| {
        let (client, id) = (client.clone(), id.clone());
        std::thread::spawn(move || match number % 2 {
            0 => client.post(&format!("/v1/sandboxes/{id}/pause"), &json!({})).0,
            _ => snapshot(&client, &id, &format!("s{number}"), "").0,
        })
    });
    let works: Vec<_> = works.collect();
    let mut statuses: Vec<u16> = works.into_iter().map(|work| work.join().unwrap()).collect();
    statuses.sort_unstable();
    assert_eq!((statuses[0] / 100, &statuses[1..]), (2, &[507, 507, 507][..]), "one alone has reached the limit");
    while ["waiting", "building"].map(Value::from).contains(&client.get(&build).1["status"]) {
        assert!(std::time::Instant::now() < deadline, "it does not end");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let (_, ended) = client.get(&build);
    assert_eq!(ended["status"], "error", "{ended}");
    assert!(ended["reason"]["message"].as_str().unwrap().contains("may have 20"), "{ended}");
    assert_eq!(client.get("/v1/snapshots?type=build").1, json!([]), "what was built is gone again");
    let listed = String::from_utf8(common::output(dir.path(), &["keys", "list"]).stdout).unwrap();
    let (_, stored) =
        listed.split_once(" of 20 MiB stored").expect("what is stored is listed").0.rsplit_once(", ").unwrap();
    assert!(stored.parse::<u64>().unwrap() >= 28, "{listed}");
    assert!(listed.contains("sandboxes running"), "{listed}");
    server.stop();
}

#[test]
fn a_key_that_stores_as_much_as_it_may_stores_no_more_and_loses_nothing() {
    if !can_run("a_key_that_stores_as_much_as_it_may_stores_no_more_and_loses_nothing") {
        return;
    }
    let dir = data_dir();
    let made = common::output(dir.path(), &["keys", "create", "ada", "--max-stored-mib", "40"]);
    let ada = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let listed = common::output(dir.path(), &["keys", "list"]).stdout;
    assert!(String::from_utf8(listed).unwrap().contains("ada  (0 of 40 MiB stored)"));
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&ada);
    let id = sandbox(&client, &json!({"timeout_sec": 600}));
    let sleeps = sandbox(&client, &json!({"timeout_sec": 20, "auto_pause": true}));
    for id in [&id, &sleeps] {
        run(&client, id, "echo kept > kept");
    }
    run(&client, &id, "head -c 50000000 /dev/urandom > big; sync");
    assert_eq!(snapshot(&client, &id, "one", "").0, 201, "until then nothing was stored");

    let path = format!("/v1/sandboxes/{id}");
    let refused = [
        snapshot(&client, &id, "two", ""),
        client.post("/v1/sandboxes", &json!({})),
        client.post(&format!("{path}/pause"), &json!({})),
        client.post(&format!("{path}/fork"), &json!({"count": 1})),
        client.post("/v1/builds", &json!({"name": "app", "steps": []})),
    ];
    for (status, answer) in refused {
        assert_eq!((status, &answer["error"]["code"]), (507, &json!("storage_limit_reached")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("may have 40"), "{answer}");
    }
    for path in ["/v2/sandboxes", &format!("/sandboxes/{id}/pause"), &format!("/sandboxes/{id}/snapshots")] {
        let (status, answer) = client.post(path, &json!({"templateID": "base"}));
        assert_eq!((status, &answer["code"]), (507, &json!(507)), "{path}: {answer}");
    }
    let (_, names) = client.get("/v1/snapshots?type=snapshot");
    assert_eq!(names.as_array().unwrap().len(), 1, "{names}");

    // What nobody asks for is done in any case, and a resume stores nothing.
    let status = |client: &Client, id: &str| client.get(&format!("/v1/sandboxes/{id}")).1["status"].clone();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(90);
    while status(&client, &sleeps) != "paused" {
        assert!(std::time::Instant::now() < deadline, "its time is over");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(client.post(&format!("/v1/sandboxes/{sleeps}/resume"), &json!({})).0, 200);
    server.stop();
    let server = Server::start(dir.path(), &[]);
    let client = server.client(&ada);
    for id in [&id, &sleeps] {
        assert_eq!(status(&client, id), "running");
        assert_eq!(run(&client, id, "cat kept"), "kept");
    }

    // Another key has a limit of its own, and this one has room again when it has deleted something.
    sandbox(&server.client(&new_key(dir.path(), "eve")), &json!({}));
    assert_eq!(client.post("/v1/sandboxes", &json!({})).0, 507);
    assert_eq!((client.delete("/v1/snapshots/one"), client.delete(&path)), (204, 204));
    assert_eq!(client.delete(&format!("/v1/sandboxes/{sleeps}")), 204);
    let fresh = sandbox(&client, &json!({}));
    assert_eq!(client.post(&format!("/v1/sandboxes/{fresh}/pause"), &json!({})).0, 200);
    server.stop();
}
