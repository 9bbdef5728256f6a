//! Nothing waits for ever: a guest whose network is down, and connections over a pause and an end.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use wrenn_core::{AgentError, Error, PortStream, Sandbox};

use crate::common::sandbox;

/// More than the host ever waits for a guest that says nothing, on a machine under load.
const BOUND: Duration = Duration::from_secs(90);

fn is_out_of_reach(error: &Error) -> bool {
    matches!(error, Error::Agent { source: AgentError::Unresponsive { .. } | AgentError::NotReachable { .. }, .. })
}

async fn bounded<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    (timeout(BOUND, work).await.expect("it does not wait for ever"), began.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_network_is_down_is_given_up_and_can_be_killed() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let mut silent = sandbox.command("sleep").arg("600").spawn().await.unwrap();
    let cut = sandbox.command("/bin/sh").args(["-c", "sudo ip link set eth0 down; sleep 600"]);
    let (cut, took) = bounded(cut.timeout(Duration::from_secs(5)).output()).await;
    println!("a command with 5 s came back after {took:?}");
    assert!(is_out_of_reach(cut.as_ref().unwrap_err()), "{cut:?}");
    let (exec, took) = bounded(sandbox.exec("true")).await;
    println!("the next command came back after {took:?}");
    assert!(is_out_of_reach(exec.as_ref().unwrap_err()), "{exec:?}");
    let (read, took) = bounded(sandbox.read_file("/etc/hostname")).await;
    println!("a file came back after {took:?}");
    assert!(is_out_of_reach(read.as_ref().unwrap_err()), "{read:?}");
    let (waited, took) = bounded(silent.wait()).await;
    println!("a child came back after {took:?}");
    assert!(is_out_of_reach(waited.as_ref().unwrap_err()), "{waited:?}");
    let (killed, _) = bounded(sandbox.kill()).await;
    killed.unwrap();
}

async fn echo(sandbox: &Sandbox) -> PortStream {
    let connected = timeout(BOUND, async {
        loop {
            match sandbox.connect(7000).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    let mut stream = connected.await.expect("it listens");
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    timeout(BOUND, stream.read_exact(&mut back)).await.unwrap().unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_ports_break_when_the_sandbox_pauses_or_is_killed() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let server = "import socket, threading
listener = socket.create_server(('0.0.0.0', 7000))
def echo(stream):
    while data := stream.recv(4096): stream.sendall(data)
while True: threading.Thread(target=echo, args=listener.accept()[:1]).start()";
    sandbox.command("python3").args(["-c", server]).spawn().await.unwrap();
    let mut stream = echo(&sandbox).await;
    let reader = tokio::spawn(async move { stream.read_u8().await });
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    let broken = bounded(reader).await.0.unwrap().unwrap_err();
    assert_eq!(broken.kind(), io::ErrorKind::ConnectionAborted);
    let mut stream = echo(&sandbox).await;
    let reader = tokio::spawn(async move { stream.read_u8().await });
    sandbox.kill().await.unwrap();
    assert_eq!(bounded(reader).await.0.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_does_not_count_against_a_commands_time() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let mut child = sandbox.command("sleep").arg("600").timeout(Duration::from_secs(15)).spawn().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let paused = sandbox.pause().await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let sandbox = paused.resume().await.unwrap();
    child.reattach(&sandbox).await.unwrap();
    assert!(timeout(Duration::from_secs(5), child.next_event()).await.is_err(), "it lives");
    let (waited, _) = bounded(child.wait()).await;
    assert!(matches!(waited, Err(Error::CommandTimedOut { .. })), "its own time is kept: {waited:?}");
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn input_output_and_errors_run_together_and_end() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let closed = bounded(sandbox.command("cat").stdin_piped().output()).await.0.unwrap();
    assert!(closed.status.success() && closed.stdout.is_empty());
    let text = "all of it\n".repeat(100_000);
    let fed = bounded(sandbox.command("cat").input(text.clone()).output()).await.0.unwrap();
    assert!(fed.stdout == text.as_bytes(), "{} bytes", fed.stdout.len());
    let unread = bounded(sandbox.command("head").args(["-c", "4"]).input(text.clone()).output()).await.0.unwrap();
    assert_eq!(unread.stdout, b"all ");

    // More than the guest keeps, so that reading and writing have to go on together.
    let twice = "import os
while block := os.read(0, 1 << 16):
    for to in (1, 2):
        left = block
        while left: left = left[os.write(to, left):]";
    let mut child = sandbox.command("python3").args(["-c", twice]).stdin_piped().spawn().await.unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (child.take_stdin().unwrap(), child.take_stdout().unwrap(), child.take_stderr().unwrap());
    let big = text.repeat(4);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let write = async {
        stdin.write_all(big.as_bytes()).await?;
        stdin.shutdown().await
    };
    let all = async { tokio::try_join!(write, stdout.read_to_end(&mut out), stderr.read_to_end(&mut err)) };
    bounded(all).await.0.unwrap();
    assert!(out == big.as_bytes() && err == big.as_bytes(), "{} and {} bytes", out.len(), err.len());
    assert!(bounded(child.wait()).await.0.unwrap().success());

    let quick = bounded(sandbox.command("sleep").arg("9").timeout(Duration::from_millis(5)).output()).await.0;
    assert!(matches!(quick, Err(Error::CommandTimedOut { .. })), "{quick:?}");
    let killed = sandbox.exec("kill -USR1 $$").await.unwrap();
    assert_eq!(killed.status.signal(), Some(wrenn_core::Signal::USR1));
    sandbox.kill().await.unwrap();
}
