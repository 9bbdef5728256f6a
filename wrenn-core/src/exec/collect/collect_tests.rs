//! What a command that is collected comes to when its agent does not do as it should.

use std::sync::atomic::Ordering;

use super::*;
use crate::agent::fake::{self, FakeAgent, Told, events, exit, lost, plain, silence, start, stderr, stdout};

const START: &str = "/process.Process/Start";

async fn run(agent: &Arc<AgentClient>, timeout: Option<Duration>) -> Result<Output> {
    collect(agent, shell_spec("true"), timeout, 10).await
}

fn is_unresponsive(error: &Error) -> bool {
    matches!(error, Error::Agent { source: AgentError::Unresponsive { .. }, .. })
}

#[tokio::test(start_paused = true)]
async fn a_time_out_is_kept_by_the_host_where_the_agent_does_not_even_say_that_the_command_runs() {
    let (_agent, client) = FakeAgent::start(|route, _| if route == START { silence() } else { fake::done() }).await;
    let began = tokio::time::Instant::now();
    let error = run(&client, Some(Duration::from_secs(5))).await.unwrap_err();
    assert!(is_unresponsive(&error), "{error:?}");
    assert!((5..=16).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_time_out_is_kept_by_the_host_where_the_agent_does_not_tell_of_the_end() {
    let told = || events([start(7), stdout(b"so far"), Told::Silence]);
    let (_agent, client) = FakeAgent::start(move |route, _| if route == START { told() } else { fake::done() }).await;
    let began = tokio::time::Instant::now();
    let error = run(&client, Some(Duration::from_secs(5))).await.unwrap_err();
    assert!(is_unresponsive(&error), "{error:?}");
    assert!((5..=16).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_command_without_a_time_out_ends_soon_after_its_guest_falls_silent_and_the_error_says_what_works() {
    let told = || events([start(7), Told::Silence]);
    let (agent, client) = FakeAgent::start(move |route, _| if route == START { told() } else { silence() }).await;
    let began = tokio::time::Instant::now();
    let running = run(&client, None);
    let cut = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        agent.reachable.store(false, Ordering::SeqCst);
        std::future::pending().await
    };
    let error = tokio::select! {
        ended = running => ended.unwrap_err(),
        () = cut => unreachable!(),
    };
    assert!(is_unresponsive(&error), "{error:?}");
    assert!(began.elapsed() <= Duration::from_secs(60), "{:?}", began.elapsed());
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert!(text.contains("kill"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_command_of_a_guest_that_answers_is_waited_for() {
    let told = || events([start(7), Told::Wait(Duration::from_secs(3600)), exit(3)]);
    let (agent, client) = FakeAgent::start(move |route, _| match route {
        START => told(),
        _ => plain(204, "text/plain", ""),
    })
    .await;
    let output = tokio::time::timeout(Duration::from_secs(7200), run(&client, None)).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(agent.count("/health") > 0, "somebody asked");
}

#[tokio::test]
async fn a_time_out_that_is_up_before_the_agent_has_answered_is_a_time_out() {
    let refusal = r#"{"code":"deadline_exceeded","message":"request timeout"}"#;
    for told in [true, false] {
        let (_agent, client) = FakeAgent::start(move |route, _| match route {
            START if told => {
                events([Told::End(r#"{"error":{"code":"deadline_exceeded","message":"request timeout"}}"#)])
            }
            START => plain(408, "application/json", refusal),
            _ => fake::done(),
        })
        .await;
        let error = run(&client, Some(Duration::from_millis(5))).await.unwrap_err();
        assert!(matches!(error, Error::CommandTimedOut { after, .. } if after.as_millis() == 5), "{error:?}");
    }
}

#[tokio::test]
async fn output_beyond_the_limit_leaves_what_was_collected() {
    let told = || events([start(7), stderr(b"oops"), stdout(b"0123456789ab"), Told::Silence]);
    let (_agent, client) = FakeAgent::start(move |route, _| if route == START { told() } else { fake::done() }).await;
    let error = run(&client, None).await.unwrap_err();
    let Error::OutputTooLong { limit_bytes: 10, stdout, stderr } = error else { panic!("{error:?}") };
    assert_eq!((&stdout[..], &stderr[..]), (&b"0123456789"[..], &b"oops"[..]));
}

#[tokio::test]
async fn a_gap_leaves_what_was_collected_before_it() {
    let told = || events([start(7), stdout(b"abc"), lost(3, 4), stdout(b"xyz"), exit(0)]);
    let (_agent, client) = FakeAgent::start(move |route, _| if route == START { told() } else { fake::done() }).await;
    let error = run(&client, None).await.unwrap_err();
    let Error::OutputLost { bytes: 4, stdout, .. } = error else { panic!("{error:?}") };
    assert_eq!(stdout, b"abc");
}

#[tokio::test]
async fn offsets_beyond_all_numbers_are_an_error_and_no_panic() {
    for told in [|| vec![start(7), lost(u64::MAX, 1)], || vec![start(7), lost(u64::MAX - 1, 1), stdout(b"x")]] {
        let (_agent, client) =
            FakeAgent::start(move |route, _| if route == START { events(told()) } else { fake::done() }).await;
        let mut spec = shell_spec("true");
        spec.until_end = true;
        let (mut stream, _guard) = begin(&client, spec).await.unwrap();
        let error = loop {
            match stream.next(&client).await {
                Ok(event) => assert!(event.is_some()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, AgentError::Senseless { .. }) && !error.is_retryable(), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_does_not_count_against_a_commands_time() {
    let told = || events([start(7), Told::Silence]);
    let (_agent, client) = FakeAgent::start(move |route, _| if route == START { told() } else { fake::done() }).await;
    let spec = ProcessSpec { timeout: Some(Duration::from_secs(15)), ..shell_spec("sleep 60") };
    let mut stream = client.start(&spec).await.unwrap();
    assert!(stream.next(&client).await.unwrap().is_some());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(tokio::time::timeout(Duration::from_millis(1), stream.next(&client)).await.is_err(), "it runs");
    // The pause.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let ends_in = Duration::from_secs(12);
    let (_resumed, client) = FakeAgent::start(move |route, _| match route {
        "/process.Process/Connect" => Box::pin(async move {
            tokio::time::sleep(ends_in).await;
            events([start(7), exit(0)]).await
        }),
        _ => plain(204, "text/plain", ""),
    })
    .await;
    stream.reattach(&client).await.unwrap();
    assert!(stream.next(&client).await.unwrap().is_some(), "it goes on");
}
