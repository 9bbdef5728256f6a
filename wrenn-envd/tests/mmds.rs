//! The host's word, by the VMM's metadata service: here a stand-in for it (`FakeMmds`), which knows the protocol alone.

mod support;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use connectrpc::client::CallOptions;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use support::{Agent, start};
use tokio::net::TcpListener;
use wrenn_envd::ACCESS_TOKEN_HEADER;

/// Answers as Firecracker's MMDS version 2 does: a token first, then the data, as JSON for those who ask for it.
struct FakeMmds {
    address: SocketAddr,
    data: Arc<Mutex<String>>,
}

impl FakeMmds {
    async fn start(data: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let data = Arc::new(Mutex::new(data.to_owned()));
        let served = data.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = served.clone();
                let answer = service_fn(move |request| {
                    let answer = answer(&request, &served.lock().expect("no panic"));
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        Self { address, data }
    }

    fn agent(&self) -> Agent {
        Agent::start_with(&["--mmds", &self.address.to_string()])
    }

    fn set(&self, data: &str) {
        data.clone_into(&mut self.data.lock().expect("no panic"));
    }
}

fn answer(request: &Request<Incoming>, data: &str) -> Response<Full<Bytes>> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::PUT, "/latest/api/token") => match header("x-metadata-token-ttl-seconds").parse::<u32>() {
            Ok(1..=21_600) => (StatusCode::OK, "the-token"),
            _ => (StatusCode::BAD_REQUEST, "no time to live"),
        },
        (&Method::GET, "/") if header("x-metadata-token") != "the-token" => (StatusCode::UNAUTHORIZED, "no token"),
        (&Method::GET, "/") if header("accept") == "application/json" => (StatusCode::OK, data),
        _ => (StatusCode::NOT_IMPLEMENTED, "the IMDS format"),
    };
    let mut response = Response::new(Full::new(body.to_owned().into()));
    *response.status_mut() = status;
    response
}

fn document(hash: &str, instance: &str) -> String {
    format!(r#"{{"instanceID":"{instance}","envID":"template-1","accessTokenHash":"{hash}","address":"x"}}"#)
}

fn hash(token: &str) -> String {
    use sha2::{Digest as _, Sha512};
    Sha512::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn init(agent: &Agent, body: &str) -> StatusCode {
    agent.call("POST", "/init", &[("content-type", "application/json")], body.to_owned()).await.status()
}

#[tokio::test]
async fn only_the_token_that_the_host_vouches_for_is_taken() {
    let mmds = FakeMmds::start(&document(&hash("first"), "sandbox-1")).await;
    let agent = mmds.agent();
    for body in ["", "{}", "{", r#"{"accessToken":"guess"}"#] {
        assert_eq!(init(&agent, body).await, StatusCode::UNAUTHORIZED, "{body}");
    }
    assert_eq!(init(&agent, r#"{"accessToken":"first"}"#).await, StatusCode::NO_CONTENT);
    assert_eq!(agent.call("GET", "/envs", &[], "").await.status(), StatusCode::UNAUTHORIZED);

    // A fork has another token, and the agent still knows the old one.
    mmds.set(&document(&hash("second"), "sandbox-2"));
    assert_eq!(init(&agent, r#"{"accessToken":"first"}"#).await, StatusCode::UNAUTHORIZED);
    assert_eq!(init(&agent, r#"{"accessToken":"second"}"#).await, StatusCode::NO_CONTENT);
    let old = agent.call("GET", "/envs", &[(ACCESS_TOKEN_HEADER, "first")], "").await;
    assert_eq!(old.status(), StatusCode::UNAUTHORIZED);
    let options = CallOptions::default().with_header(ACCESS_TOKEN_HEADER, "second");
    let line = "echo $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID";
    let done = agent.run(start("sh", &["-c", line]), options).await.unwrap();
    assert_eq!(done.stdout_utf8(), "true sandbox-2 template-1\n");
}

#[tokio::test]
async fn without_the_service_init_says_the_same() {
    let agent = Agent::start();
    assert_eq!(init(&agent, r#"{"instanceID":"sandbox-3","envID":"template-2"}"#).await, StatusCode::NO_CONTENT);
    let envs = agent.call("GET", "/envs", &[], "").await;
    let expected = r#"{"E2B_SANDBOX":"true","E2B_SANDBOX_ID":"sandbox-3","E2B_TEMPLATE_ID":"template-2"}"#;
    assert_eq!(envs.body().as_ref(), expected.as_bytes());
}

#[tokio::test]
async fn a_service_that_should_be_there_and_is_not_lets_nobody_in() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let agent = Agent::start_with(&["--mmds", &closed.to_string()]);
    let answer = agent.call("POST", "/init", &[], "").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(String::from_utf8_lossy(answer.body()).contains("cannot be reached"), "{answer:?}");

    let broken = FakeMmds::start("no JSON").await;
    let answer = broken.agent().call("POST", "/init", &[], "").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agent = Agent::start_with(&["--mmds", &silent.local_addr().unwrap().to_string()]);
    assert_eq!(init(&agent, "").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(agent.call("GET", "/health", &[], "").await.status(), StatusCode::NO_CONTENT);
}
