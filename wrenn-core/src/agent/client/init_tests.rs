//! How a guest is told who it is, when its agent is not ready.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, sync::Mutex};

use futures::{FutureExt as _, future::BoxFuture};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::*;

struct Loopback(SocketAddr);

impl Connector for Loopback {
    fn connect(&self, _port: u16) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        TcpStream::connect(self.0).boxed()
    }
}

/// Not an agent: it answers `/init` with one status after another, and keeps what it was sent.
async fn fake_agent(statuses: &'static [u16]) -> (Arc<Loopback>, Arc<Mutex<Vec<InitRequest>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (connector, seen) = (Arc::new(Loopback(listener.local_addr().unwrap())), Arc::new(Mutex::default()));
    let sent: Arc<Mutex<Vec<InitRequest>>> = Arc::clone(&seen);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let answer = service_fn(|request: Request<Incoming>| {
            let sent = Arc::clone(&sent);
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                sent.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                let status = statuses[sent.lock().unwrap().len() - 1];
                let body = http_body_util::Full::new(Bytes::from_static(br#"{"code":0,"message":"not now"}"#));
                Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
            }
        });
        http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await
    });
    (connector, seen)
}

fn request() -> InitRequest {
    InitRequest { timestamp: Some(Timestamp::from_unix_nanos(1)), hostname: Some("h".into()), ..Default::default() }
}

#[tokio::test]
async fn an_agent_that_is_not_ready_is_asked_again_and_told_the_time_anew() {
    let (connector, seen) = fake_agent(&[503, 408, 429, 204]).await;
    let weak: Weak<dyn Connector> = Arc::downgrade(&(connector.clone() as Arc<dyn Connector>));
    AgentClient::new(weak, None).init_within(&request(), Duration::from_secs(20)).await.unwrap();
    let seen = seen.lock().unwrap();
    let times: Vec<_> = seen.iter().map(|request| request.timestamp.unwrap()).collect();
    assert!(times.len() == 4 && times[0] > request().timestamp.unwrap() && times.is_sorted(), "{times:?}");
    assert!(times[3].unix_nanos() - times[0].unix_nanos() >= 3 * 20_000_000 && seen[3].hostname.is_some());
}

#[tokio::test]
async fn a_refusal_is_not_tried_again_and_neither_is_one_for_now_when_the_time_is_up() {
    for (statuses, timeout_ms, tries) in [(&[500, 204][..], 20_000, 1), (&[503; 1000][..], 100, 2)] {
        let (connector, seen) = fake_agent(statuses).await;
        let weak: Weak<dyn Connector> = Arc::downgrade(&(connector.clone() as Arc<dyn Connector>));
        let client = AgentClient::new(weak, None);
        let refused = client.init_within(&request(), Duration::from_millis(timeout_ms)).await.unwrap_err();
        assert!(refused.to_string().contains("not now"), "{refused:?}");
        assert!((tries..=5).contains(&seen.lock().unwrap().len()));
    }
}
