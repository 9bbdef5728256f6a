//! Spans, as a collector of OpenTelemetry gets them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use common::{Server, can_run, data_dir, wrenn_server};

#[test]
fn a_request_is_a_span_of_its_clients_trace() {
    if !can_run("a_request_is_a_span_of_its_clients_trace") {
        return;
    }
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", collector.local_addr().unwrap());
    let (sender, bodies) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in collector.incoming() {
            if sender.send(take(stream.unwrap())).is_err() {
                return;
            }
        }
    });
    let dir = data_dir();
    let mut command = wrenn_server(dir.path(), &["serve", "--listen", "127.0.0.1:0", "--no-auth"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url).env("OTEL_BSP_SCHEDULE_DELAY", "100");
    let server = Server::spawn(command);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = format!(
        "GET /healthz HTTP/1.1\r\nHost: test\r\nConnection: close\r\nX-Request-Id: told-to-a-collector\r\n\
         traceparent: 00-{trace}-00f067aa0ba902b7-01\r\n\r\n"
    );
    assert_eq!(server.client("").bytes(request.as_bytes()).0, 200);
    server.stop();
    let mut all = Vec::new();
    while let Ok((path, body)) = bodies.recv_timeout(Duration::from_secs(1)) {
        assert_eq!(path, "/v1/traces");
        all.extend(body);
    }
    let trace: Vec<u8> = (0..16).map(|at| u8::from_str_radix(&trace[2 * at..2 * at + 2], 16).unwrap()).collect();
    for needed in [&trace[..], b"told-to-a-collector", b"request_id", b"wrenn-server"] {
        assert!(
            all.windows(needed.len()).any(|window| window == needed),
            "{:?} is not in what was sent: {:?}",
            String::from_utf8_lossy(needed),
            String::from_utf8_lossy(&all)
        );
    }
}

/// The path and the body of a request, which is answered.
fn take(mut stream: TcpStream) -> (String, Vec<u8>) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (mut request, mut bytes) = (Vec::new(), [0; 4096]);
    let (head, body_at) = loop {
        let len = stream.read(&mut bytes).unwrap();
        request.extend_from_slice(&bytes[..len]);
        if let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            break (String::from_utf8(request[..end].to_vec()).unwrap().to_ascii_lowercase(), end + 4);
        }
        assert!(len > 0, "no request");
    };
    let len: usize = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    while request.len() < body_at + len {
        let read = stream.read(&mut bytes).unwrap();
        assert!(read > 0, "half a body");
        request.extend_from_slice(&bytes[..read]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().to_owned(), request.split_off(body_at))
}
