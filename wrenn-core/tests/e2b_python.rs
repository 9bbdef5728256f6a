//! E2B's Python client, as it is published, finds the agent in a sandbox, which is a virtual machine of this host.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "../../wrenn-envd/tests/e2b_client/mod.rs"]
mod e2b_client;

use std::net::TcpListener as StdTcpListener;
use std::path::Path;
use std::process::Output;
use std::thread;

use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use wrenn_core::Sandbox;

use common::sandbox;

#[tokio::test]
async fn commands_run_in_a_guest_as_e2bs_client_expects() {
    vm_test_or_return!();
    run("commands_run_in_a_guest_as_e2bs_client_expects", "test_commands.py").await;
}

#[tokio::test]
async fn files_of_a_guest_are_what_e2bs_client_expects() {
    vm_test_or_return!();
    run("files_of_a_guest_are_what_e2bs_client_expects", "test_files.py").await;
}

#[tokio::test]
async fn terminals_of_a_guest_behave_as_e2bs_client_expects() {
    vm_test_or_return!();
    run("terminals_of_a_guest_behave_as_e2bs_client_expects", "test_pty.py").await;
}

#[tokio::test]
async fn watches_in_a_guest_tell_what_e2bs_client_expects() {
    vm_test_or_return!();
    run("watches_in_a_guest_tell_what_e2bs_client_expects", "test_watch.py").await;
}

#[expect(clippy::print_stdout, reason = "what is skipped is reported by the runner")]
async fn run(test: &str, file: &'static str) {
    let python = match tokio::task::spawn_blocking(e2b_client::python).await.unwrap() {
        Ok(python) => python,
        Err(reason) => return println!("skipped: {test}: {reason}"),
    };
    let (_host, sandbox) = sandbox().await;
    let token = sandbox.agent_token();
    let (listening, listener) = oneshot::channel();
    let (done, ran) = oneshot::channel();
    // What a thread starts is where the thread is, and no other test shall be there.
    thread::spawn(move || done.send(run_in_own_network(python, file, token.as_deref(), listening)));
    let forwarding = forward(&sandbox, listener.await.unwrap());
    let ran = tokio::select! { ran = ran => ran.unwrap(), () = forwarding => unreachable!("it goes on for ever") };
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    println!("{said}");
    sandbox.kill().await.unwrap();
}

fn run_in_own_network(
    python: &Path,
    file: &str,
    token: Option<&str>,
    listening: oneshot::Sender<StdTcpListener>,
) -> Output {
    e2b_client::enter_own_network();
    // Where the client looks for an agent.
    let listener = StdTcpListener::bind(("127.0.0.1", wrenn_envd::AGENT_PORT)).unwrap();
    listening.send(listener).unwrap();
    e2b_client::tests(python, file, token).output().unwrap()
}

/// Passes each connection on to the guest's agent, for ever.
async fn forward(sandbox: &Sandbox, listener: StdTcpListener) {
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        client.set_nodelay(true).unwrap();
        let sandbox = sandbox.clone();
        tokio::spawn(async move {
            let mut agent = sandbox.connect(wrenn_envd::AGENT_PORT).await.unwrap();
            // Whoever breaks it tells the other by that.
            let _ = copy_bidirectional(&mut client, &mut agent).await;
        });
    }
}
