//! A command in a guest has its streams and its variables to itself.

mod common;

use common::{run, sandbox};

#[tokio::test(flavor = "multi_thread")]
async fn a_user_may_open_a_commands_streams_anew_and_clear_its_variables() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    assert_eq!(run(&sandbox, "id -un; echo out > /dev/stdout").await, "user\nout");
    let done = sandbox.command("sh").args(["-c", "echo err > /dev/stderr"]).output().await.unwrap();
    assert_eq!((done.stderr_utf8().as_ref(), done.status.code()), ("err\n", Some(0)));
    let read = sandbox.command("sh").args(["-c", "cat < /dev/stdin"]).input("in").output().await.unwrap();
    assert_eq!(read.stdout_utf8(), "in");
    let env = sandbox.command("env").env("BEFORE", "1").env_clear().env("ONLY", "this").output().await.unwrap();
    assert_eq!(env.stdout_utf8(), "ONLY=this\n");
    sandbox.kill().await.unwrap();
}
