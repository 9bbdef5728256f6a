//! The OpenAPI document, as the server gives it: it has the routes that there are, and no others.

mod common;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use common::{Client, Server, can_run, data_dir};

/// The head of an answer, in lower case, and its body.
fn ask(client: &Client, method: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(client.address).expect("a server");
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_ascii_lowercase(), body.to_owned())
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).expect("a status").parse().expect("a number")
}

#[test]
fn the_document_has_the_routes_that_there_are() {
    if !can_run("the_document_has_the_routes_that_there_are") {
        return;
    }
    let dir = data_dir();
    // The document wants no key.
    let server = Server::start(dir.path(), &[]);
    let client = server.client("");
    let (head, json) = ask(&client, "GET", "/openapi.json");
    assert!(head.contains("200 ok") && head.contains("content-type: application/json"), "{head}");
    let document: Value = serde_json::from_str(&json).expect("JSON");
    for (path, item) in document["paths"].as_object().expect("paths") {
        let described: BTreeSet<String> =
            item.as_object().expect("methods").keys().map(|method| method.to_ascii_uppercase()).collect();
        let at = path.replace("{id}", "sb0000000000000000").replace("{name}", "nothing").replace("{tag}", "v1");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let (head, _) = ask(&client, method, &at);
            let wanted = match (described.contains(method), path.as_str()) {
                (true, "/healthz") => 200,
                (true, _) => 401,
                (false, _) => 405,
            };
            assert_eq!(status(&head), wanted, "{method} {path}: {head}");
            if wanted == 405 {
                let allowed = head.lines().find_map(|line| line.strip_prefix("allow: ")).expect("what it has instead");
                let allowed: BTreeSet<String> =
                    allowed.split(',').map(str::to_ascii_uppercase).filter(|method| method != "HEAD").collect();
                assert_eq!(allowed, described, "{path}");
            }
        }
    }
    let (head, yaml) = ask(&client, "GET", "/openapi.yaml");
    assert!(head.contains("200 ok") && head.contains("content-type: application/yaml"), "{head}");
    assert!(yaml.starts_with("openapi: 3.1.0\n") && yaml.contains("\n  /v1/sandboxes/{id}/exec/stream:\n"), "{yaml}");

    // The page has all that it needs from the server itself.
    let (head, _) = ask(&client, "GET", "/docs");
    assert!(status(&head) == 303 && head.contains("location: /docs/"), "{head}");
    let (head, page) = ask(&client, "GET", "/docs/");
    assert_eq!(status(&head), 200, "{head}");
    for address in page.split(['"', '\'']).filter(|text| text.starts_with("./")) {
        let (head, _) = ask(&client, "GET", &format!("/docs/{}", &address[2..]));
        assert_eq!(status(&head), 200, "{address}: {head}");
    }
    assert!(!page.contains("//"), "{page}");
    let (_, start) = ask(&client, "GET", "/docs/swagger-initializer.js");
    assert!(start.contains("../openapi.json") && start.contains("\"validatorUrl\": \"none\""), "{start}");
    server.stop();
}
