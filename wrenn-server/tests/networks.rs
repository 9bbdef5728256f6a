//! Networks of sandboxes by both APIs, with real guests.

mod common;

use serde_json::{Value, json};

use common::{Server, can_run, data_dir, sandbox};

#[test]
fn dns_servers_are_taken_told_and_refused_by_both_apis() {
    if !can_run("dns_servers_are_taken_told_and_refused_by_both_apis") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--no-auth"]);
    let client = server.client("");
    let put = |path: &str, body: &Value| client.send("PUT", path, Some(&body.to_string()));

    let named = json!({"allowOut": ["pypi.org"], "denyOut": ["0.0.0.0/0"], "dnsServers": ["1.1.1.1", "9.9.9.9"]});
    let (status, made) = client.post("/v2/sandboxes", &json!({"templateID": "base", "timeout": 600, "network": named}));
    assert_eq!(status, 201, "{made}");
    let id = made["sandboxID"].as_str().unwrap();
    let (e2b, v1) = (format!("/sandboxes/{id}"), format!("/v1/sandboxes/{id}"));
    let told =
        || (client.get(&e2b).1["network"]["dnsServers"].clone(), client.get(&v1).1["network"]["dns_servers"].clone());
    assert_eq!(told(), (json!(["1.1.1.1", "9.9.9.9"]), json!(["1.1.1.1", "9.9.9.9"])));
    for (servers, part) in [
        (json!(["10.0.0.53"]), "10.0.0.53"),
        (json!(["169.254.169.254"]), "169.254.169.254"),
        (json!(["2606:4700:4700::1111"]), "IPv4"),
        (json!(["dns.example"]), "dns.example"),
        (json!(vec!["1.1.1.1"; 11]), "10 addresses"),
    ] {
        let (status, answer) = put(&format!("{e2b}/network"), &json!({"dnsServers": servers}));
        assert_eq!(status, 400, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(part), "{answer}");
    }
    assert_eq!(told().0, json!(["1.1.1.1", "9.9.9.9"]), "what was refused has changed nothing");
    // A change that leaves them out has the server's own again, and a pause keeps what was set.
    assert_eq!(put(&format!("{e2b}/network"), &json!({})).0, 204);
    assert_eq!(told(), (Value::Null, Value::Null));
    let wanted = json!({"dns_servers": ["10.0.0.53", "2620:fe::fe"], "allow": ["10.0.0.53:53"]});
    assert_eq!(put(&format!("{v1}/network"), &wanted).0, 204);
    for change in ["pause", "resume"] {
        assert_eq!(client.post(&format!("{v1}/{change}"), &json!({})).0, 200);
    }
    assert_eq!(told().1, json!(["10.0.0.53", "2620:fe::fe"]));

    let none = sandbox(&client, &json!({"network": {"dns_servers": []}}));
    assert_eq!(client.get(&format!("/v1/sandboxes/{none}")).1["network"]["dns_servers"], json!([]));
    let asks = json!({"cmd": "python3", "args": ["-c", "import socket; socket.getaddrinfo('example.com', 80)"]});
    let (_, answer) = client.post(&format!("/v1/sandboxes/{none}/exec"), &asks);
    assert_ne!(answer["exit_code"], 0, "{answer}");
    let is_counted = || {
        let (_, body) = client.head_and_body("/metrics");
        String::from_utf8_lossy(&body).contains(r#"wrenn_egress_refusals_total{reason="no_dns_server"}"#)
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !is_counted() {
        assert!(std::time::Instant::now() < deadline, "the refusal is not told");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    server.stop();
}
