//! Who may call, and what `/init` does.

mod support;

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use connectrpc::{
    ErrorCode, Protocol,
    client::{CallOptions, ClientConfig, HttpClient},
};
use hyper::StatusCode;
use support::{Agent, start};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use wrenn_envd::{
    ACCESS_TOKEN_HEADER, ARCHIVES_FEATURE, FEATURES_HEADER, PROTOCOL_VERSION, VERSION_HEADER,
    proto::{
        filesystem::{FilesystemClient, StatRequest},
        process::{ListRequest, ProcessClient},
    },
};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn everything_but_health_needs_the_token_once_it_is_set() {
    let agent = Agent::start();
    assert_eq!(agent.call("GET", "/envs", &[], "").await.status(), StatusCode::OK);
    let answer = agent.call("POST", "/init", &[JSON], r#"{"accessToken":"first"}"#).await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    assert_eq!(answer.headers()[VERSION_HEADER], PROTOCOL_VERSION);
    assert_eq!(answer.headers()[FEATURES_HEADER], ARCHIVES_FEATURE);

    assert_eq!(agent.call("GET", "/health", &[], "").await.status(), StatusCode::NO_CONTENT);
    for (method, route) in [
        ("GET", "/envs"),
        ("GET", "/metrics"),
        ("GET", "/files?path=/etc/passwd"),
        ("POST", "/init"),
        ("POST", "/freeze"),
        ("POST", "/unfreeze"),
        ("POST", "/fsfreeze"),
        ("POST", "/fsthaw"),
        ("GET", "/events?after=0"),
        ("POST", "/files?path=/no/such/place"),
        ("POST", "/files/compose"),
    ] {
        for headers in [&[][..], &[(ACCESS_TOKEN_HEADER, "wrong")][..]] {
            let answer = agent.call(method, route, headers, "").await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {route}");
            let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!(body["code"], 401);
            assert!(body["message"].is_string());
        }
    }
    let options = |token| CallOptions::default().with_header(ACCESS_TOKEN_HEADER, token);
    for protocol in [Protocol::Connect, Protocol::Grpc, Protocol::GrpcWeb] {
        let config = ClientConfig::new(format!("http://{}", agent.address).parse().unwrap()).with_protocol(protocol);
        let client = ProcessClient::new(HttpClient::plaintext_http2_only(), config);
        let request = ListRequest::default;
        let error = client.list(request()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthenticated, "{protocol:?}");
        let error = client.list_with_options(request(), options("wrong")).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthenticated, "{protocol:?}");
        client.list_with_options(request(), options("first")).await.unwrap();
    }
    let error = agent.shell("true").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert_eq!(agent.run(start("true", &[]), options("first")).await.unwrap().exit_code(), 0);
}

#[tokio::test]
async fn no_call_on_files_is_carried_out_without_the_token() {
    let agent = Agent::start();
    agent.call("POST", "/init", &[JSON], r#"{"accessToken":"first"}"#).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    let (path, made) = (file.display(), directory.path().join("made"));
    for (call, body) in [
        ("Stat", format!(r#"{{"path":"{path}"}}"#)),
        ("ListDir", format!(r#"{{"path":"{path}"}}"#)),
        ("MakeDir", format!(r#"{{"path":"{}"}}"#, made.display())),
        ("Move", format!(r#"{{"source":"{path}","destination":"{}"}}"#, made.display())),
        ("Remove", format!(r#"{{"path":"{path}"}}"#)),
        ("WatchDir", format!(r#"{{"path":"{path}"}}"#)),
        ("CreateWatcher", format!(r#"{{"path":"{path}"}}"#)),
        ("GetWatcherEvents", r#"{"watcherId":"w1"}"#.to_owned()),
        ("RemoveWatcher", r#"{"watcherId":"w1"}"#.to_owned()),
    ] {
        for headers in [&[JSON][..], &[JSON, (ACCESS_TOKEN_HEADER, "wrong")], &[JSON, (ACCESS_TOKEN_HEADER, "")]] {
            let answer = agent.call("POST", &format!("/filesystem.Filesystem/{call}"), headers, body.clone()).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{call}");
        }
    }
    assert!(!made.exists() && std::fs::read_to_string(&file).unwrap() == "kept");
    // A client of the protocol takes it for what it is.
    let base = format!("http://{}", agent.address).parse().unwrap();
    let client = FilesystemClient::new(HttpClient::plaintext_http2_only(), ClientConfig::new(base));
    let request = StatRequest { path: path.to_string(), ..Default::default() };
    let error = client.stat(request.clone()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    let options = CallOptions::default().with_header(ACCESS_TOKEN_HEADER, "first");
    client.stat_with_options(request, options).await.unwrap();
}

#[tokio::test]
async fn init_replaces_the_token_the_environment_and_the_defaults() {
    let agent = Agent::start();
    let body = r#"{"accessToken":"first","envVars":{"A":"1"},"defaultWorkdir":"/usr"}"#;
    agent.call("POST", "/init", &[JSON], body).await;
    let body =
        r#"{"accessToken":"second","envVars":{"B":"2"},"timestamp":"2020-01-01T00:00:00Z","hostname":"elsewhere"}"#;
    let answer = agent.call("POST", "/init", &[JSON, (ACCESS_TOKEN_HEADER, "first")], body).await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    assert_eq!(
        agent.call("GET", "/envs", &[(ACCESS_TOKEN_HEADER, "first")], "").await.status(),
        StatusCode::UNAUTHORIZED
    );
    let envs = agent.call("GET", "/envs", &[(ACCESS_TOKEN_HEADER, "second")], "").await;
    assert_eq!(envs.body().as_ref(), br#"{"B":"2"}"#);
    let options = || CallOptions::default().with_header(ACCESS_TOKEN_HEADER, "second");
    let done = agent.run(start("sh", &["-c", "echo $A$B; pwd"]), options()).await.unwrap();
    assert_eq!(done.stdout_utf8(), "2\n/usr\n");
}

#[tokio::test]
async fn a_body_that_is_no_request_is_refused_and_changes_nothing() {
    let agent = Agent::start();
    for body in ["{", "7", r#"{"timestamp":"yesterday"}"#, r#"{"entropy":"!"}"#, r#"{"accessToken":"t","envVars":7}"#] {
        let answer = agent.call("POST", "/init", &[JSON], body).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{body}");
    }
    assert_eq!(agent.call("GET", "/envs", &[], "").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_restore_closes_the_connections_from_before_it() {
    let agent = Agent::start();
    let mut stale = TcpStream::connect(agent.address).await.unwrap();
    assert_eq!(agent.call("GET", "/health", &[], "").await.status(), StatusCode::NO_CONTENT);
    let body = format!(r#"{{"entropy":"{}"}}"#, STANDARD.encode([7; 64]));
    assert_eq!(agent.call("POST", "/init", &[JSON], body).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(stale.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

/// By the names on the wire: the agent's own type would read whatever it writes.
#[tokio::test]
async fn metrics_describe_the_machine_in_e2bs_words() {
    let agent = Agent::start();
    let answer = agent.call("GET", "/metrics", &[], "").await;
    assert_eq!(answer.headers()["content-type"], "application/json");
    let metrics: BTreeMap<String, f64> = serde_json::from_slice(answer.body()).unwrap();
    let names: Vec<_> = metrics.keys().map(String::as_str).collect();
    let expected = [
        "cpu_count",
        "cpu_time_ms",
        "cpu_used_pct",
        "disk_total",
        "disk_used",
        "mem_cache",
        "mem_total",
        "mem_total_mib",
        "mem_used",
        "mem_used_mib",
        "net_received_bytes",
        "net_sent_bytes",
        "ts",
    ];
    assert_eq!(names, expected);
    // As the kernel says it, in hundredths of a second.
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let ticks: Vec<f64> =
        stat.lines().next().unwrap().split_whitespace().skip(1).map(|ticks| ticks.parse().unwrap()).collect();
    let worked = ticks.iter().take(8).sum::<f64>() - ticks[3] - ticks[4];
    assert!((metrics["cpu_time_ms"] - worked * 10.0).abs() < 60_000.0, "{metrics:?}, but it is {worked} ticks");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((metrics["ts"] - now).abs() < 10.0, "{metrics:?}, but it is {now}");
    let processors = std::thread::available_parallelism().unwrap().get();
    assert_eq!(metrics["cpu_count"], f64::from(u32::try_from(processors).unwrap()));
    assert!((0.0..=100.0).contains(&metrics["cpu_used_pct"]), "{metrics:?}");
    // As the kernel says it, in KiB.
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix(" kB")).unwrap();
    assert_eq!(metrics["mem_total"], total.trim().parse::<f64>().unwrap() * 1024.0);
    let mib = f64::from(1 << 20);
    assert_eq!(metrics["mem_total_mib"], (metrics["mem_total"] / mib).floor());
    assert_eq!(metrics["mem_used_mib"], (metrics["mem_used"] / mib).floor());
    for (part, whole) in [("mem_used", "mem_total"), ("mem_cache", "mem_total"), ("disk_used", "disk_total")] {
        assert!(metrics[part] > 0.0 && metrics[part] < metrics[whole], "{part}: {metrics:?}");
    }
}

#[tokio::test]
async fn a_volume_that_cannot_be_mounted_refuses_the_whole_request_and_no_volumes_are_fine() {
    let agent = Agent::start();
    let body = r#"{"accessToken":"t","volumeMounts":[{"nfs_target":"10.0.0.1:/volume","path":"/data"}]}"#;
    let answer = agent.call("POST", "/init", &[JSON], body).await;
    assert_eq!(answer.status(), StatusCode::NOT_IMPLEMENTED);
    let message = String::from_utf8_lossy(answer.body()).into_owned();
    assert!(message.contains("10.0.0.1:/volume") && message.contains("NFS"), "{message}");
    assert_eq!(agent.call("GET", "/envs", &[], "").await.status(), StatusCode::OK, "the token was not taken");
    for body in [r#"{"volumeMounts":[]}"#, r#"{"volumeMounts":null,"caBundle":""}"#] {
        assert_eq!(agent.call("POST", "/init", &[JSON], body).await.status(), StatusCode::NO_CONTENT, "{body}");
    }
    let answer = agent.call("POST", "/init", &[JSON], r#"{"volumeMounts":[{"path":"/data"}]}"#).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
}
