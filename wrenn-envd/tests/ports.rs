//! What listens on the guest's loopback can be reached from outside.

mod support;

use std::{net::Ipv4Addr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use support::Agent;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

/// An agent, and the address that it publishes on. Each test has its own.
fn publishing(last: u8) -> (Agent, Ipv4Addr) {
    let pid = std::process::id().to_string().bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(7).wrapping_add(byte));
    let address = Ipv4Addr::new(127, 77, pid, last);
    (Agent::start_with(&["--publish", &address.to_string()]), address)
}

/// Connects as soon as the port is published.
async fn reach(address: Ipv4Addr, port: u16) -> TcpStream {
    for _ in 0..300 {
        match TcpStream::connect((address, port)).await {
            Ok(stream) => return stream,
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("{address}:{port} is not published within 6 s");
}

async fn is_closed(address: Ipv4Addr, port: u16) -> bool {
    for _ in 0..300 {
        if TcpStream::connect((address, port)).await.is_err() {
            return true;
        }
        sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test]
async fn both_loopbacks_are_published_with_half_closed_streams() {
    let (_agent, address) = publishing(1);
    let mut servers = vec![TcpListener::bind("127.0.0.1:0").await.unwrap()];
    match TcpListener::bind("[::1]:0").await {
        Ok(v6) => servers.push(v6),
        Err(error) => println!("skipped: half of both_loopbacks_are_published: {error}"),
    }
    for server in servers {
        let port = server.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut question = Vec::new();
            stream.read_to_end(&mut question).await.unwrap();
            stream.write_all(&question.repeat(2)).await.unwrap();
        });
        let mut client = reach(address, port).await;
        let question: Vec<u8> = (0..300_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        client.write_all(&question).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer == question.repeat(2), "{} bytes", answer.len());
        serving.await.unwrap();
    }
}

#[tokio::test]
async fn a_port_that_closes_and_opens_is_published_again() {
    let (_agent, address) = publishing(2);
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    reach(address, port).await;
    drop(server);
    assert!(is_closed(address, port).await);
    let server = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let mut client = reach(address, port).await;
    let (mut stream, _) = server.accept().await.unwrap();
    stream.write_all(b"again").await.unwrap();
    let mut word = [0; 5];
    client.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"again");
}

#[tokio::test]
async fn what_listens_everywhere_keeps_its_port_to_itself() {
    let (_agent, address) = publishing(3);
    let marker = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let everywhere = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = everywhere.local_addr().unwrap().port();
    reach(address, marker.local_addr().unwrap().port()).await;
    let mut client = TcpStream::connect((address, port)).await.unwrap();
    let (mut stream, from) = everywhere.accept().await.unwrap();
    assert_eq!(from, client.local_addr().unwrap(), "nobody is in between");
    stream.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0; 1]).await.unwrap();
}

#[tokio::test]
async fn a_restore_closes_published_connections_and_keeps_the_port() {
    let (agent, address) = publishing(4);
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let mut before = reach(address, port).await;
    let (_inside, _) = server.accept().await.unwrap();
    let body = format!(r#"{{"entropy":"{}"}}"#, STANDARD.encode([7; 64]));
    agent.call("POST", "/init", &[("content-type", "application/json")], body).await;
    let read = timeout(Duration::from_secs(5), before.read(&mut [0; 1])).await.expect("it is closed");
    assert_eq!(read.unwrap_or(0), 0);
    reach(address, port).await;
}
