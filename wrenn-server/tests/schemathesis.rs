//! The server held to its OpenAPI documents by schemathesis, with all of its checks: requests that a document allows are taken,
//! others are refused, and each answer is one that the document has.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests; what is skipped is reported by the runner")]

mod common;
#[path = "../../wrenn-envd/tests/e2b_client/mod.rs"]
mod e2b_client;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Server, can_run, data_dir, output, sandbox};
use serde_json::json;

#[test]
fn the_server_is_what_its_document_says() {
    const TEST: &str = "the_server_is_what_its_document_says";
    if can_run(TEST) {
        run(TEST, "v1.toml", |address| format!("http://{address}/openapi.json"));
    }
}

/// E2B's document is E2B's, and so it is not in the repository.
#[test]
fn the_server_is_what_the_document_of_e2b_says() {
    const TEST: &str = "the_server_is_what_the_document_of_e2b_says";
    if !can_run(TEST) {
        return;
    }
    match std::env::var(DOCUMENT) {
        Ok(path) => run(TEST, "e2b.toml", |_| path),
        Err(_) => println!("skipped: {TEST}: {DOCUMENT} does not name E2B's spec/openapi.yml"),
    }
}

/// Runs it against a server of its own that has one sandbox, for as many seconds as [`SECONDS`] says.
fn run(test: &str, settings: &str, document: impl FnOnce(std::net::SocketAddr) -> String) {
    let Some(seconds) = std::env::var(SECONDS).ok().and_then(|seconds| seconds.parse::<u32>().ok()) else {
        return println!("skipped: {test}: {SECONDS} does not say for how many seconds");
    };
    let python = match e2b_client::environment(&own("requirements.txt"), "schemathesis") {
        Ok(python) => python,
        Err(reason) => return println!("skipped: {test}: {reason}"),
    };
    let dir = data_dir();
    // Any size that a document allows is one of this server's; but few and small ones are made in so short a time.
    let limits = ["--max-sandboxes", "2", "--max-vcpus", "2", "--max-memory-mib", "1024"];
    let made = output(dir.path(), &[&["keys", "create", "ada"], &limits[..]].concat());
    let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let server = Server::start(dir.path(), &["--memory-times", "64", "--vcpus-times", "64"]);
    sandbox(&server.client(&key), &json!({"timeout_sec": 3600}));
    let seed = std::env::var("WRENN_TEST_SEED").unwrap_or_else(|_| rand::random::<u32>().to_string());
    let mut st = Command::new("timeout");
    st.arg((2 * seconds + 60).to_string()).arg(python.with_file_name("st")).arg("--config-file").arg(own(settings));
    st.arg("run").arg(document(server.address)).args(["--url", &format!("http://{}", server.address)]);
    st.args(["--max-time", &seconds.to_string(), "--seed", &seed, "--generation-database", "none", "--no-color"]);
    st.args(["--header", &format!("X-API-Key: {key}")]).current_dir(dir.path());
    let ran = st.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "WRENN_TEST_SEED={seed}\n{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    println!("{said}");
    server.stop();
}

fn own(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis").join(file)
}

/// How long it goes on: other requests each time, so that a run says something of itself alone.
const SECONDS: &str = "WRENN_TEST_SCHEMATHESIS";
/// Where E2B's document is.
const DOCUMENT: &str = "WRENN_TEST_E2B_DOCUMENT";
