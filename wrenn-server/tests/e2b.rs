//! E2B's clients as they are published, against the server, with real guests.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests; what is skipped is reported by the runner")]

mod common;
#[path = "../../wrenn-envd/tests/e2b_client/mod.rs"]
mod e2b_client;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Server, can_run, data_dir, new_key};

#[test]
fn the_newest_python_client_finds_what_it_expects() {
    const TEST: &str = "the_newest_python_client_finds_what_it_expects";
    python(TEST, &e2b_client::sources().join("requirements.txt"), "e2b-python", &own("e2b_python"), &[]);
}

/// What the agent alone is tested with, through the server.
#[test]
fn the_newest_python_client_finds_the_agent_through_the_server() {
    const TEST: &str = "the_newest_python_client_finds_the_agent_through_the_server";
    python(TEST, &e2b_client::sources().join("requirements.txt"), "e2b-python", &e2b_client::sources(), &[]);
}

#[test]
fn a_python_client_of_the_first_paths_finds_what_it_expects() {
    const TEST: &str = "a_python_client_of_the_first_paths_finds_what_it_expects";
    let files = ["test_life.py", "test_network.py"];
    python(TEST, &own("e2b_python/requirements-2.50.txt"), "e2b-python-2.50", &own("e2b_python"), &files);
}

#[test]
fn the_javascript_client_finds_what_it_expects() {
    const TEST: &str = "the_javascript_client_finds_what_it_expects";
    if !can_run(TEST) {
        return;
    }
    let place = match javascript() {
        Ok(place) => place,
        Err(reason) => return println!("skipped: {TEST}: {reason}"),
    };
    let mut node = Command::new("node");
    node.args(["--test", "--test-reporter=spec", "sandbox.test.mjs"]).current_dir(place);
    run(node);
}

/// `docs/compatibility.md` has a table of the clients' calls that these tests make.
#[test]
fn the_page_of_what_is_served_says_what_is_tested() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(TABLE_BEGINS).expect("the page has a place for the table");
    let (_, after) = rest.split_once(TABLE_ENDS).expect("the table's place has an end");
    let right = format!("{before}{TABLE_BEGINS}\n{}{TABLE_ENDS}{after}", table());
    if std::env::var_os("WRENN_TEST_WRITE").is_some() {
        std::fs::write(&page, right).unwrap();
    } else {
        assert!(
            text == right,
            "the table of docs/compatibility.md is old: write it anew with \
             `WRENN_TEST_WRITE=1 cargo test -p wrenn-server --test e2b the_page`"
        );
    }
}

fn python(test: &str, requirements: &Path, name: &str, tests: &Path, files: &[&str]) {
    if !can_run(test) {
        return;
    }
    let python = match e2b_client::environment(requirements, name) {
        Ok(python) => python,
        Err(reason) => return println!("skipped: {test}: {reason}"),
    };
    let mut pytest = Command::new(python);
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]).args(files).current_dir(tests);
    pytest.env("PYTHONDONTWRITEBYTECODE", "1").env_remove("E2B_DEBUG").env_remove("WRENN_ACCESS_TOKEN");
    run(pytest);
}

/// Runs a client's tests against a server of their own.
fn run(mut tests: Command) {
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let server = Server::start(dir.path(), &["--domain", "wrenn.test"]);
    let address = format!("http://{}", server.address);
    tests.env("E2B_API_KEY", key).env("E2B_API_URL", &address).env("E2B_SANDBOX_URL", &address);
    let ran = tests.env("E2B_DOMAIN", "wrenn.test").output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    println!("{said}");
    server.stop();
}

/// A directory with the JavaScript tests and what they need, made once for each list of that; or why there is none.
fn javascript() -> Result<PathBuf, String> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2b-javascript");
    let list = std::fs::read(own("e2b_js/package-lock.json")).unwrap();
    let is_whole = std::fs::read(place.join("whole")).is_ok_and(|whole| whole == list);
    std::fs::create_dir_all(&place).unwrap();
    for file in ["package.json", "package-lock.json", "sandbox.test.mjs"] {
        std::fs::copy(own("e2b_js").join(file), place.join(file)).unwrap();
    }
    if is_whole {
        return Ok(place);
    }
    let install = Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&place).output();
    let install = install.map_err(|error| format!("no npm: {error}; install Node.js 20 or later"))?;
    let said = String::from_utf8_lossy(&install.stderr).into_owned();
    if !install.status.success() {
        let is_offline = ["ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN"].iter().any(|why| said.contains(why));
        assert!(is_offline, "npm could not install the client:\n{said}");
        return Err("no network to install E2B's client by".to_owned());
    }
    std::fs::write(place.join("whole"), list).unwrap();
    Ok(place)
}

fn own(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

/// A line for each call, and which clients' tests make it.
fn table() -> String {
    let life = [own("e2b_python/test_life.py"), own("e2b_python/test_network.py")];
    let all = [life.to_vec(), python_files(&own("e2b_python")), python_files(&e2b_client::sources())].concat();
    let (newest, first) = (python_calls(&all), python_calls(&life));
    let javascript = javascript_calls(&std::fs::read_to_string(own("e2b_js/sandbox.test.mjs")).unwrap());
    let mut table = String::from("| call | Python 2.63.0 | Python 2.50.0 | JavaScript 2.51.0 |\n|---|---|---|---|\n");
    for call in CALLS {
        let mark = |calls: &BTreeSet<String>| if calls.contains(call) { "tested" } else { "" };
        writeln!(table, "| `{call}` | {} | {} | {} |", mark(&newest), mark(&first), mark(&javascript)).unwrap();
    }
    table
}

fn python_files(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "py")).collect()
}

fn python_calls(files: &[PathBuf]) -> BTreeSet<String> {
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    texts.flat_map(|text| made(&text, |name| name.to_owned())).collect()
}

fn javascript_calls(text: &str) -> BTreeSet<String> {
    // `sendInput` of a terminal is Python's `send_stdin`.
    made(text, |name| if name == "sendInput" { "send_stdin".to_owned() } else { snake_case(name) })
}

/// The calls of [`CALLS`] that a text makes.
fn made(text: &str, name_of: impl Fn(&str) -> String) -> BTreeSet<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let before_brackets =
        text.split('(').map(|part| part.rsplit(|c| !is_word(c) && c != '.').next().unwrap_or_default());
    let named = before_brackets.filter_map(|path| {
        let mut words = path.rsplit('.');
        let (name, room) = (words.next()?, words.next()?);
        let name = name_of(name);
        Some(if ["commands", "files", "pty"].contains(&room) {
            format!("{room}.{name}")
        } else if ["Template", "AsyncTemplate"].contains(&room) {
            format!("Template.{name}")
        } else {
            format!("Sandbox.{name}")
        })
    });
    named.filter(|call| CALLS.contains(&&**call)).collect()
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_uppercase() {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}

const TABLE_BEGINS: &str = "<!-- made by the tests -->";
const TABLE_ENDS: &str = "<!-- end -->";
/// As the newest Python client has them.
const CALLS: [&str; 48] = [
    "Sandbox.create",
    "Sandbox.connect",
    "Sandbox.list",
    "Sandbox.get_info",
    "Sandbox.is_running",
    "Sandbox.set_timeout",
    "Sandbox.pause",
    "Sandbox.kill",
    "Sandbox.fork",
    "Sandbox.create_snapshot",
    "Sandbox.list_snapshots",
    "Sandbox.delete_snapshot",
    "Sandbox.update_network",
    "Sandbox.get_metrics",
    "Sandbox.get_host",
    "Sandbox.download_url",
    "Sandbox.upload_url",
    "commands.run",
    "commands.connect",
    "commands.list",
    "commands.kill",
    "commands.send_stdin",
    "commands.close_stdin",
    "commands.stream_input",
    "files.read",
    "files.write",
    "files.write_files",
    "files.list",
    "files.exists",
    "files.get_info",
    "files.make_dir",
    "files.rename",
    "files.remove",
    "files.watch_dir",
    "pty.create",
    "pty.connect",
    "pty.send_stdin",
    "pty.stream_input",
    "pty.resize",
    "pty.kill",
    "Sandbox.get_mcp_token",
    "Template.build",
    "Template.build_in_background",
    "Template.get_build_status",
    "Template.exists",
    "Template.assign_tags",
    "Template.remove_tags",
    "Template.get_tags",
];
