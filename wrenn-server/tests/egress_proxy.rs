//! Connections of real guests that leave by the proxies that clients name. The host, the internet and its servers are in
//! network namespaces of the test's own.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "../../wrenn-net/tests/proxies/mod.rs"]
mod proxies;
#[path = "../../wrenn-net/tests/web/mod.rs"]
mod web;
#[path = "../../wrenn-net/tests/world/mod.rs"]
mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::{Client, Server, can_run, data_dir, run, sandbox};
use proxies::{Asked, Proxy, Speaks};
use world::in_a_world;

const PASSWORD: &str = "93c1a7f04be2d865";
const CREDENTIALS: &str = "ada:93c1a7f04be2d865";
const FETCH: &str = "curl -s --max-time 30 http://93.184.216.34/";

fn put(client: &Client, path: &str, body: &Value) -> (u16, Value) {
    client.send("PUT", path, Some(&body.to_string()))
}

/// How many of a guest's connections have left by a proxy, of one that arrives.
fn leaves_by(asked: &Asked, client: &Client, id: &str) -> usize {
    let before = asked.lock().unwrap().len();
    assert_eq!(run(client, id, FETCH), "93.184.216.34:80");
    asked.lock().unwrap().len() - before
}

/// A connection that a guest does not get, by what curl(1) makes of it.
fn gets_none(client: &Client, id: &str) {
    let (_, answer) = client
        .post(&format!("/v1/sandboxes/{id}/exec"), &json!({"cmd": "sh", "args": ["-c", FETCH], "timeout_sec": 60}));
    assert_eq!(answer["exit_code"], json!(7), "{answer}");
}

/// Whether any file of the library's has a text.
fn is_kept(directory: &Path, text: &str) -> bool {
    std::fs::read_dir(directory).unwrap().map(Result::unwrap).any(|entry| {
        let kind = entry.file_type().unwrap();
        let is_own = entry.file_name() == "server";
        if kind.is_dir() {
            !is_own && is_kept(&entry.path(), text)
        } else {
            kind.is_file()
                && std::fs::read(entry.path()).unwrap().windows(text.len()).any(|part| part == text.as_bytes())
        }
    })
}

#[test]
fn connections_leave_by_the_proxy_that_a_client_names_and_its_password_is_told_to_nobody_else() {
    let test = "connections_leave_by_the_proxy_that_a_client_names_and_its_password_is_told_to_nobody_else";
    if !can_run(test) {
        return;
    }
    in_a_world(test, async |world| {
        world.web("93.184.216.34:80");
        let authority = web::Authority::new("the proxy's");
        let acceptor = authority.acceptor(&["proxy.example"], &[]);
        let open = |at, tls| Proxy::new(&world, Speaks::Socks5).wants(CREDENTIALS).within(tls).serve(world.listen(at));
        let plain = open("93.184.216.35:1080", None);
        let within_tls = open("93.184.216.35:1081", Some(acceptor));
        let dir = data_dir();
        let server = Server::start(dir.path(), &["--no-auth"]);
        let client = server.client("");

        let proxy = |password| json!({"address": "93.184.216.35:1080", "username": "ada", "password": password});
        let id = sandbox(&client, &json!({"timeout_sec": 3600, "network": {"egress_proxy": proxy("wrong")}}));
        let (v1, e2b) = (format!("/v1/sandboxes/{id}"), format!("/sandboxes/{id}"));
        gets_none(&client, &id);
        let deadline = Instant::now() + Duration::from_secs(10);
        let counts = || String::from_utf8(client.head_and_body("/metrics").1).unwrap();
        while !counts().contains(r#"wrenn_egress_refusals_total{reason="proxy"}"#) {
            assert!(Instant::now() < deadline, "the refusal is not told");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(put(&client, &format!("{v1}/network"), &json!({"egress_proxy": proxy(PASSWORD)})).0, 204);
        assert_eq!(leaves_by(&plain, &client, &id), 1);

        // What runs, what is paused and what an earlier server has left has it, and nobody reads it again.
        let (status, forked) = client.post(&format!("{v1}/fork"), &json!({}));
        assert_eq!(status, 201, "{forked}");
        assert_eq!(leaves_by(&plain, &client, forked[0]["id"].as_str().unwrap()), 1);
        for change in ["pause", "resume"] {
            assert_eq!(client.post(&format!("{v1}/{change}"), &json!({})).0, 200);
        }
        assert_eq!(leaves_by(&plain, &client, &id), 1);
        let told = [
            client.get(&v1).1["network"]["egress_proxy"].clone(),
            client.get(&e2b).1["network"]["egressProxy"].clone(),
        ];
        assert_eq!(told, [(); 2].map(|()| json!({"address": "93.184.216.35:1080", "username": "ada"})));
        server.stop();
        assert!(is_kept(dir.path(), "egress-proxy-") && !is_kept(dir.path(), PASSWORD));
        let server = Server::start(dir.path(), &["--no-auth"]);
        let client = server.client("");
        assert_eq!(leaves_by(&plain, &client, &id), 1);

        let tls = json!({"enabled": true, "serverName": "proxy.example", "caCert": authority.pem()});
        let proxy = json!({"address": "93.184.216.35:1081", "username": "ada", "password": PASSWORD, "tls": tls});
        assert_eq!(put(&client, &format!("{e2b}/network"), &json!({"egressProxy": proxy})).0, 204);
        assert_eq!((leaves_by(&within_tls, &client, &id), plain.lock().unwrap().len()), (1, 4));
        let told = client.get(&e2b).1["network"]["egressProxy"]["tls"].clone();
        assert_eq!(told, json!({"enabled": true, "serverName": "proxy.example"}));
        assert_eq!(client.get(&v1).1["network"]["egress_proxy"]["tls"], json!({"server_name": "proxy.example"}));
        server.stop();
    });
}

#[test]
fn a_clients_proxy_is_not_one_of_the_operators_networks_and_nothing_goes_around_one_that_is_down() {
    let test = "a_clients_proxy_is_not_one_of_the_operators_networks_and_nothing_goes_around_one_that_is_down";
    if !can_run(test) {
        return;
    }
    in_a_world(test, async |world| {
        world.web("93.184.216.34:80");
        let inside = Proxy::new(&world, Speaks::Socks5).serve(world.listen("10.9.0.7:1080"));
        let own = tokio::net::TcpListener::bind("127.0.0.1:1080").await.unwrap();
        let own = Proxy::new(&world, Speaks::Socks5).serve(own);
        let dir = data_dir();
        let server = Server::start(dir.path(), &["--no-auth"]);
        let client = server.client("");
        let id = sandbox(&client, &json!({"timeout_sec": 3600}));
        let path = format!("/v1/sandboxes/{id}/network");
        for (address, part) in [
            ("10.9.0.7:1080", "private network"),
            ("127.0.0.1:1080", "its loopback"),
            ("169.254.169.254:80", "its link"),
            ("[::1]:1080", "its loopback"),
            ("eve:hunter2@93.184.216.35:1080", "HOST:PORT"),
        ] {
            let (status, answer) = put(&client, &path, &json!({"egress_proxy": {"address": address}}));
            assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_input")), "{address}: {answer}");
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.contains(part) && !message.contains("hunter2"), "{address}: {answer}");
        }
        assert_eq!(run(&client, &id, FETCH), "93.184.216.34:80", "what was refused has changed nothing");
        // A name leads there at last; and nobody listens.
        for address in ["localhost:1080", "93.184.216.35:9"] {
            assert_eq!(put(&client, &path, &json!({"egress_proxy": {"address": address}})).0, 204);
            gets_none(&client, &id);
        }
        assert_eq!((own.lock().unwrap().len(), inside.lock().unwrap().len()), (0, 0));
        let allowed = json!({"allow": ["10.9.0.7:1080"], "egress_proxy": {"address": "10.9.0.7:1080"}});
        assert_eq!(put(&client, &path, &allowed).0, 204);
        assert_eq!(leaves_by(&inside, &client, &id), 1);
        server.stop();
    });
}
