//! A file system that does not answer holds up who asked for it, and nobody else.

mod support;

use std::time::{Duration, Instant};

use connectrpc::{ErrorCode, client::CallOptions};
use support::{Agent, hung::HungMount, start};
use tokio::time::timeout;
use wrenn_envd::proto::process::StartRequest;

fn in_directory(directory: &str) -> StartRequest {
    let mut request = start("/bin/true", &[]);
    request.process.get_or_insert_default().cwd = Some(directory.to_owned());
    request
}

fn with_path(path: &str) -> StartRequest {
    let mut request = start("true", &[]);
    request.process.get_or_insert_default().envs = [("PATH".to_owned(), path.to_owned())].into_iter().collect();
    request
}

#[tokio::test]
async fn a_directory_that_does_not_answer_holds_up_nobody_else() {
    let Some(hung) = HungMount::make("a_directory_that_does_not_answer_holds_up_nobody_else") else { return };
    let agent = Agent::start();
    agent.shell("true").await.unwrap();
    let place = hung.path().display().to_string();
    let requests = [
        in_directory(&place),
        in_directory(&format!("{place}/below")),
        with_path(&format!("{place}:/bin")),
        start(&format!("{place}/program"), &[]),
    ];
    let held_up = requests.map(|request| agent.run(request, CallOptions::default()));
    let others = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        for _ in 0..5 {
            let answer = timeout(Duration::from_secs(2), agent.shell("echo up")).await.expect("it answers others");
            assert_eq!(answer.unwrap().stdout_utf8(), "up\n");
            let health = timeout(Duration::from_secs(2), agent.call("GET", "/health", &[], "")).await;
            assert_eq!(health.expect("it answers others").status(), 204);
        }
    };
    let begun = Instant::now();
    let (answers, ()) = futures::join!(futures::future::join_all(held_up), others);
    for answer in answers {
        let refused = answer.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable, "{refused:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
}
