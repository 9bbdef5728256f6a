//! Bad input gets the code and the words that say what is wrong with it.

mod support;

use std::{fs, process::Command, time::Duration};

use connectrpc::{ConnectError, ErrorCode, client::CallOptions};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use serde_json::json;
use support::{Agent, start};
use tokio::net::TcpStream;
use wrenn_envd::proto::process::StartRequest;

const JSON: (&str, &str) = ("content-type", "application/json");
const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

fn with_env(name: &str, value: &str) -> StartRequest {
    let mut request = start("true", &[]);
    request.process.get_or_insert_default().envs.insert(name.to_owned(), value.to_owned());
    request
}

fn with_cwd(cwd: &str) -> StartRequest {
    let mut request = start("true", &[]);
    request.process.get_or_insert_default().cwd = Some(cwd.to_owned());
    request
}

async fn refusal(agent: &Agent, request: StartRequest) -> ConnectError {
    agent.run(request, CallOptions::default()).await.expect_err("it is refused")
}

#[tokio::test]
async fn a_start_that_no_program_can_be_given_is_refused_with_what_is_wrong() {
    let agent = Agent::start();
    for (request, words) in [
        (StartRequest::default(), "no process is named"),
        (start("", &[]), "`cmd` is empty"),
        (start("a\0b", &[]), "the command holds a NUL"),
        (start("true", &["fine", "a\0b"]), "argument 2 holds a NUL"),
        (with_env("", "value"), "has no name"),
        (with_env("A=B", "value"), "\"A=B\" holds a `=`"),
        (with_env("A\0", "value"), "holds a `=` or a NUL"),
        (with_env("A", "se\0cret"), "the value of the variable A holds a NUL"),
        (with_cwd("/a\0b"), "the working directory holds a NUL"),
        (with_cwd("/no/such/place"), "\"/no/such/place\" is missing"),
        (with_cwd("/etc/passwd"), "is no directory"),
    ] {
        let error = refusal(&agent, request).await;
        let message = error.message.unwrap_or_default();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{words}: {message}");
        assert!(message.contains(words) && !message.contains("cret"), "{words}: {message}");
    }
    for command in ["no-such-command", "/no/such/command", "./passwd"] {
        let error = refusal(&agent, start(command, &[])).await;
        assert_eq!(error.code, ErrorCode::NotFound, "{command}");
        assert!(error.message.unwrap_or_default().contains(command), "{command}");
    }
    assert_eq!(agent.shell("echo up").await.unwrap().stdout_utf8(), "up\n");
}

#[tokio::test]
async fn settings_that_would_fail_every_later_start_are_refused_at_once() {
    let agent = Agent::start();
    for (body, words) in [
        (json!({"envVars": {"A": "se\0cret"}}), "envVars: the value of the variable A holds a NUL"),
        (json!({"envVars": {"A\0": "1"}}), "holds a `=` or a NUL"),
        (json!({"envVars": {"A=B": "1"}}), "\"A=B\""),
        (json!({"envVars": {"": "1"}}), "has no name"),
        (json!({"instanceID": "i\0"}), "instanceID holds a NUL"),
        (json!({"envID": "i\0"}), "envID holds a NUL"),
        (json!({"defaultUser": "root\0"}), "defaultUser holds a NUL"),
        (json!({"defaultWorkdir": "/\0"}), "defaultWorkdir holds a NUL"),
    ] {
        let mut body = body;
        body["accessToken"] = "taken".into();
        let answer = agent.call("POST", "/init", &[JSON], body.to_string()).await;
        let message = String::from_utf8_lossy(answer.body()).replace("\\\"", "\"");
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{words}: {message}");
        assert!(message.contains(words) && !message.contains("cret"), "{words}: {message}");
    }
    // Nothing of it was taken over, the token neither.
    assert_eq!(agent.call("GET", "/envs", &[], "").await.body().as_ref(), b"{}");
    assert_eq!(agent.shell("echo up").await.unwrap().stdout_utf8(), "up\n");
}

/// It may be made later, as when a template is built.
#[tokio::test]
async fn a_default_user_that_is_not_there_is_taken_and_named_by_the_calls_that_need_it() {
    let agent = Agent::start();
    let answer = agent.call("POST", "/init", &[JSON], r#"{"defaultUser":"ghost"}"#).await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    let error = agent.shell("true").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(error.message.unwrap().contains("\"ghost\""));
    let answer = agent.call("POST", "/filesystem.Filesystem/Stat", &[JSON], r#"{"path":"/"}"#).await;
    let refusal: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!((answer.status(), &refusal["code"]), (StatusCode::BAD_REQUEST, &"invalid_argument".into()));
    let answer = agent.call("GET", "/files?path=/etc/passwd", &[], "").await;
    let message = String::from_utf8_lossy(answer.body()).into_owned();
    assert!(answer.status() == StatusCode::BAD_REQUEST && message.contains("ghost"), "{message}");
    // Who names another user is served, and another default ends it.
    let answer = agent.call("GET", "/files?path=/etc/passwd&username=root", &[], "").await;
    assert_eq!(answer.status(), StatusCode::OK);
    agent.call("POST", "/init", &[JSON], r#"{"defaultUser":""}"#).await;
    assert_eq!(agent.shell("echo up").await.unwrap().stdout_utf8(), "up\n");
}

#[tokio::test]
async fn what_ends_in_the_parent_is_no_name_to_move_or_to_write_to() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", directory.path().display());
    fs::create_dir(at("inner")).unwrap();
    fs::write(at("file"), "kept").unwrap();
    for (source, destination) in
        [("inner/..", "new"), ("file", "inner/.."), ("inner/../..", "new"), ("file", "inner/../")]
    {
        let body = json!({"source": at(source), "destination": at(destination)}).to_string();
        let answer = agent.call("POST", "/filesystem.Filesystem/Move", &[JSON], body).await;
        let refusal: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!((answer.status(), &refusal["code"]), (StatusCode::BAD_REQUEST, &"invalid_argument".into()));
        assert!(refusal["message"].as_str().is_some_and(|message| message.contains("..")), "{refusal}");
    }
    for path in [at("inner/.."), at("inner/../"), "/tmp/..".to_owned(), "..".to_owned()] {
        let answer = agent.call("POST", &format!("/files?path={path}"), &[OCTETS], "new").await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{path}");
        let body = json!({"source_paths": [at("file")], "destination": path}).to_string();
        let answer = agent.call("POST", "/files/compose", &[JSON], body).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "kept");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing is made, and nothing left");
    // In the middle it is the kernel's to follow.
    let answer = agent.call("POST", &format!("/files?path={}", at("inner/../made")), &[OCTETS], "new").await;
    assert_eq!((answer.status(), fs::read_to_string(at("made")).unwrap().as_str()), (StatusCode::OK, "new"));
}

#[tokio::test]
async fn what_is_no_file_is_never_waited_for() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", directory.path().display());
    let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    nix::unistd::mkfifo(at("fifo").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(at("file"), "kept").unwrap();
    for name in ["socket", "fifo"] {
        for (method, body) in [("GET", ""), ("POST", "x")] {
            let call = agent.call(method, &format!("/files?path={}", at(name)), &[OCTETS], body).await;
            assert_eq!(call.status(), StatusCode::BAD_REQUEST, "{method} {name}");
        }
        let body = json!({"source_paths": [at("file"), at(name)], "destination": at("whole")}).to_string();
        let call = agent.call("POST", "/files/compose", &[JSON], body);
        let answer = tokio::time::timeout(Duration::from_secs(5), call).await.expect("nobody writes to it");
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{name}");
        assert!(String::from_utf8_lossy(answer.body()).contains(&at(name)), "{answer:?}");
    }
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "kept");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3, "nothing is made, and nothing left");
}

#[tokio::test]
async fn a_method_that_a_route_does_not_know_is_said() {
    let agent = Agent::start();
    for method in ["PUT", "DELETE", "PATCH"] {
        let answer = agent.call(method, "/files?path=/etc/passwd", &[], "x").await;
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
        let refusal: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(refusal, json!({"code": 405, "message": "GET and POST are what /files knows"}));
    }
}

/// What has been promised cannot be taken back, but a part is not to look like the whole.
#[tokio::test]
async fn a_file_that_shrinks_while_it_is_read_is_no_whole_answer() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    for encoding in ["identity", "gzip"] {
        // Noise, which gzip does not make small enough for the buffers on the way.
        let noise = Command::new("head").args(["-c", "64000000", "/dev/urandom"]).output().unwrap().stdout;
        fs::write(&path, noise).unwrap();
        let stream = TokioIo::new(TcpStream::connect(agent.address).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(format!("/files?path={}", path.display())).header("host", "guest");
        let request = request.header("accept-encoding", encoding).body(Empty::<Bytes>::new()).unwrap();
        let mut answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.body_mut().frame().await.unwrap().unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
        let rest = tokio::time::timeout(Duration::from_secs(30), answer.into_body().collect()).await;
        assert!(rest.expect("it ends").is_err(), "{encoding}");
    }
    assert_eq!(agent.shell("echo up").await.unwrap().stdout_utf8(), "up\n");
}
