//! Ports of a real guest that are listeners of the host's.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use common::{patient, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wrenn_core::{Child, Event, HostEventKind, PublishOptions, Sandbox};

/// Sends back what it gets, in capitals, on each connection.
const SERVER: &str = "import socketserver\n\
    class Handler(socketserver.BaseRequestHandler):\n\
    \x20   def handle(self):\n\
    \x20       while data := self.request.recv(4096): self.request.sendall(data.upper())\n\
    socketserver.ThreadingTCPServer.allow_reuse_address = True\n\
    server = socketserver.ThreadingTCPServer(('', 8000), Handler)\n\
    print('ready', flush=True)\n\
    server.serve_forever()\n";

/// Counts the requests that it has answered.
const COUNTER: &str = "import http.server\n\
    class Handler(http.server.BaseHTTPRequestHandler):\n\
    \x20   count = 0\n\
    \x20   def log_message(self, *args): pass\n\
    \x20   def do_GET(self):\n\
    \x20       Handler.count += 1\n\
    \x20       self.send_response(200)\n\
    \x20       self.end_headers()\n\
    \x20       self.wfile.write(str(Handler.count).encode())\n\
    server = http.server.HTTPServer(('', 8000), Handler)\n\
    print('ready', flush=True)\n\
    server.serve_forever()\n";

async fn serve(sandbox: &Sandbox, program: &str) -> Child {
    let mut server = sandbox.command("python3").args(["-c", program]).spawn().await.unwrap();
    let begun = timeout(patient(Duration::from_secs(120)), server.next_event()).await.expect("it begins");
    assert!(matches!(begun, Ok(Some(Event::Stdout(_)))), "{begun:?}");
    server
}

async fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"hello").await?;
    let mut answer = [0; 5];
    timeout(Duration::from_secs(30), stream.read_exact(&mut answer)).await??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_port_lives_as_long_as_its_sandbox_and_is_there_again_after_a_resume() {
    vm_test_or_return!();
    let host = common::host().await;
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    let port = sandbox.publish(8000, PublishOptions::default()).await.unwrap();
    assert!(port.address.ip().is_loopback() && port.address.port() > 0, "{port:?}");
    let nobody = ask(port.address).await.unwrap_err();
    assert!(matches!(nobody.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof), "{nobody:?}");
    let server = serve(&sandbox, SERVER).await;
    let answers = futures::future::join_all((0..20).map(|_| ask(port.address))).await;
    assert!(answers.iter().all(|answer| answer.as_deref().is_ok_and(|answer| answer == "HELLO")), "{answers:?}");

    let mut open = TcpStream::connect(port.address).await.unwrap();
    open.write_all(b"a").await.unwrap();
    assert_eq!(open.read_u8().await.unwrap(), b'A');
    let paused = sandbox.pause().await.unwrap();
    let ended = timeout(Duration::from_secs(5), open.read(&mut [0; 1])).await.expect("it is told");
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(ask(port.address).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);

    let resumed = paused.resume().await.unwrap();
    assert_eq!(resumed.published(), std::slice::from_ref(&port));
    assert_eq!(ask(port.address).await.unwrap(), "HELLO");
    let child = resumed.fork(1).await.unwrap().remove(0).unwrap();
    assert!(child.published().is_empty());
    assert_eq!(run(&child, "echo it runs").await, "it runs");
    child.kill().await.unwrap();

    resumed.unpublish(port.address).await.unwrap();
    let again = resumed.unpublish(port.address).await.unwrap_err();
    assert!(again.code() == "not_found" && again.to_string().contains(&port.address.to_string()), "{again}");
    let other = resumed.publish(8000, PublishOptions::default()).await.unwrap();
    assert_eq!(ask(other.address).await.unwrap(), "HELLO");
    resumed.kill().await.unwrap();
    assert_eq!(ask(other.address).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let over = resumed.publish(8000, PublishOptions::default()).await.unwrap_err();
    assert_eq!(over.code(), "invalid_state", "{over}");
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_cannot_be_had_is_said_to_be_so_and_keeps_no_sandbox_from_its_resume() {
    vm_test_or_return!();
    let host = common::host().await;
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    for (guest_port, options, says) in [
        (0, PublishOptions::default(), "1 to 65535"),
        (8000, PublishOptions::default().port(taken.port()), "is taken"),
        (8000, PublishOptions::default().address([93, 184, 216, 34].into()), "has no address 93.184.216.34"),
    ] {
        let error = sandbox.publish(guest_port, options).await.unwrap_err();
        assert!(error.code() == "invalid_input" && error.to_string().contains(says), "{error}");
    }
    drop(other);
    sandbox.publish(8000, PublishOptions::default().port(taken.port())).await.unwrap();
    let paused = sandbox.pause().await.unwrap();
    let other = std::net::TcpListener::bind(taken).unwrap();
    let resumed = paused.resume().await.unwrap();
    let published = resumed.published();
    assert_eq!((published.len(), published[0].address), (1, taken));
    assert!(published[0].problem.as_ref().unwrap().contains("is taken"), "{published:?}");
    drop(other);
    // It can be tried again.
    resumed.publish(8000, PublishOptions::default().port(taken.port())).await.unwrap();
    assert!(resumed.published().iter().all(|port| port.problem.is_none()) && resumed.published().len() == 1);
    resumed.kill().await.unwrap();
}

/// How many requests the server has answered with this one.
async fn count(address: SocketAddr) -> io::Result<u32> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (_, count) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        count.parse().map_err(io::Error::other)
    };
    timeout(patient(Duration::from_secs(300)), asked).await?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_wakes_a_paused_sandbox_whose_server_goes_on() {
    vm_test_or_return!();
    let host = common::host().await;
    let mut events = host.events();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    let server = serve(&sandbox, COUNTER).await;
    let port = sandbox.publish(8000, PublishOptions::default().wake(true)).await.unwrap();
    assert!(port.wake && sandbox.published() == std::slice::from_ref(&port));
    assert_eq!(count(port.address).await.unwrap(), 1);
    let id = sandbox.id().clone();
    drop((sandbox.pause().await.unwrap(), sandbox, server));
    assert_eq!(count(port.address).await.unwrap(), 2, "it is the same process");

    let woken = host.sandbox(&id).unwrap();
    assert_eq!(woken.published(), std::slice::from_ref(&port));
    woken.pause().await.unwrap();
    let (one, two) = tokio::join!(count(port.address), count(port.address));
    let mut counts = [one.unwrap(), two.unwrap()];
    counts.sort_unstable();
    assert_eq!(counts, [3, 4]);

    let paused = host.sandbox(&id).unwrap().pause().await.unwrap();
    assert_eq!(paused.published(), std::slice::from_ref(&port));
    paused.delete().await.unwrap();
    assert_eq!(count(port.address).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let (mut wakes, mut resumes, mut pauses) = (0, 0, 0);
    while pauses < 3 {
        let event = timeout(Duration::from_secs(60), events.next()).await.unwrap().unwrap().unwrap();
        match event.kind {
            HostEventKind::Woken { address } if address == port.address => wakes += 1,
            HostEventKind::Resumed => resumes += 1,
            HostEventKind::Paused => pauses += 1,
            _ => {}
        }
    }
    assert_eq!((wakes, resumes), (2, 2), "of two connections at once one wakes it");
}
