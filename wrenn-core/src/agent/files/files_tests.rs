//! What becomes of a file's call whose guest does not do as it should.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::time::{sleep, timeout};
use wrenn_envd::{FEATURES_HEADER, InitRequest};

use super::*;
use crate::agent::fake::{FakeAgent, Reply, plain, silence};

const PATIENCE: Duration = Duration::from_secs(60);

fn request() -> FileRequest {
    FileRequest { path: "f".to_owned(), ..FileRequest::default() }
}

/// An answer that claims so many bytes, and sends pieces of a KiB, one a second, for as long as the test likes.
fn trickle(length: Option<usize>, pieces: usize) -> Reply {
    let frames = stream::unfold(0, move |sent| async move {
        if sent == pieces {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_secs(1)).await;
        Some((Ok(Frame::data(Bytes::from_static(&[1; 1024]))), sent + 1))
    });
    let mut response = Response::builder();
    if let Some(length) = length {
        response = response.header("content-length", length);
    }
    let response = response.body(ClientBody::new(StreamBody::new(frames))).unwrap();
    Box::pin(std::future::ready(response))
}

/// An answer to `/init` that names features, or none.
fn initialized(features: Option<&'static str>) -> Reply {
    let mut response = Response::builder();
    if let Some(features) = features {
        response = response.header(FEATURES_HEADER, features);
    }
    Box::pin(std::future::ready(response.body(full_body(Bytes::new())).unwrap()))
}

#[tokio::test]
async fn an_agent_that_names_no_archives_is_sent_none_and_the_error_names_the_remedy() {
    for (features, knows) in [(None, false), (Some("other"), false), (Some("other, archives"), true)] {
        let (agent, client) = FakeAgent::start(move |_, _| initialized(features)).await;
        client.init(&InitRequest::default()).await.unwrap();
        let unpacked = FileRequest { resource: Resource::Unpacked, ..request() };
        let sent = client.write_file(&unpacked, Bytes::from_static(b"tar"), PATIENCE).await;
        assert_eq!((sent.is_ok(), agent.count("/files/unpack")), (knows, usize::from(knows)), "{features:?}: {sent:?}");
        if let Err(error) = sent {
            assert!(matches!(error, AgentError::Outdated { .. }), "{error:?}");
            assert!(!error.is_retryable() && error.to_string().contains("build the template"), "{error}");
        }
        let packed = FileRequest { resource: Resource::Packed, ..request() };
        assert_eq!(client.open_file(&packed, 0, PATIENCE).await.is_ok(), knows, "{features:?}");
        client.write_file(&request(), Bytes::from_static(b"file"), PATIENCE).await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_too_long_is_refused_for_good_before_it_is_read() {
    let (_agent, client) = FakeAgent::start(|_, _| trickle(Some(300 << 20), 0)).await;
    let error = timeout(Duration::from_secs(10), client.read_file(&request(), PATIENCE)).await.unwrap().unwrap_err();
    assert!(matches!(error, AgentError::TooLong { limit_bytes: FILE_BYTES_MAX }), "{error:?}");
    assert!(
        !error.is_retryable() && error.to_string().contains("256 MiB") && error.to_string().contains("Files::open")
    );
}

#[tokio::test]
async fn a_refusal_is_not_read_for_ever() {
    let (_agent, client) = FakeAgent::start(|_, _| plain(500, "text/plain", vec![b'x'; 2 << 20])).await;
    let error = client.read_file(&request(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, AgentError::TooLong { limit_bytes: ANSWER_BYTES_MAX }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_file_may_take_long_and_no_piece_of_it() {
    let health = |route: &str| route == "/health";
    let (_agent, client) =
        FakeAgent::start(move |route, _| if health(route) { plain(204, "text/plain", "") } else { trickle(None, 300) })
            .await;
    let began = Instant::now();
    let error = client.read_file(&request(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, AgentError::Unresponsive { .. }), "{error:?}");
    assert!((360..=370).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_words_of_a_refusal_are_shown_without_what_a_terminal_obeys() {
    let (_agent, client) =
        FakeAgent::start(|_, _| plain(404, "application/json", r#"{"code":404,"message":"no \u001b[2J"}"#)).await;
    let error = client.read_file(&request(), PATIENCE).await.unwrap_err();
    assert_eq!(error.to_string(), r"no \u{1b}[2J");
    let refusal = r#"{"code":"internal","message":"bad \u001b[2J"}"#;
    let (_agent, client) = FakeAgent::start(move |_, _| plain(500, "application/json", refusal)).await;
    let error = client.stat("f", None).await.unwrap_err();
    let mut texts = vec![error.to_string()];
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    assert!(texts.iter().any(|text| text.contains(r"\u{1b}")), "{texts:?}");
    assert!(!texts.iter().any(|text| text.contains('\u{1b}')), "{texts:?}");
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_the_guest_does_not_answer_ends_and_one_whose_sender_is_slow_does_not() {
    let (_agent, client) =
        FakeAgent::start(|route, _| if route == "/health" { plain(204, "text/plain", "") } else { silence() }).await;
    for bytes in [10, 3 << 20] {
        let (began, request) = (Instant::now(), request());
        let write = client.write_file(&request, vec![1; bytes].into(), PATIENCE);
        let error = timeout(Duration::from_secs(3600), write).await.unwrap().unwrap_err();
        assert!(matches!(error, AgentError::Unresponsive { .. }), "{error:?}");
        assert!((60..=130).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }

    let received = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&received);
    let (_agent, client) = FakeAgent::start(move |_, body| {
        counted.fetch_add(body.len(), Ordering::SeqCst);
        plain(204, "text/plain", "")
    })
    .await;
    let (pieces, to_send) = mpsc::channel(1);
    let sender = tokio::spawn(async move {
        for _ in 0..3 {
            sleep(Duration::from_secs(3600)).await;
            pieces.send(Piece::Data(Bytes::from_static(b"slow"))).await.unwrap();
        }
        pieces.send(Piece::End).await.unwrap();
    });
    client.upload(&request(), to_send, PATIENCE).await.unwrap();
    sender.await.unwrap();
    client.write_file(&request(), vec![1; 3 << 20].into(), PATIENCE).await.unwrap();
    assert_eq!(received.load(Ordering::SeqCst), 12 + (3 << 20));
}
