//! An agent whose answers a test writes, over real sockets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buffa::Message as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use connectrpc::client::ClientBody;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use wrenn_envd::proto::process::process_event::data_event::Output;
use wrenn_envd::proto::process::process_event::{DataEvent, EndEvent, Event, LostEvent, StartEvent};
use wrenn_envd::proto::process::{ProcessEvent, StartResponse};

use crate::agent::client::AgentClient;
use crate::agent::connector::Connector;

/// Answers each request as the test says.
pub(crate) struct FakeAgent {
    address: SocketAddr,
    /// Whether new connections come about; without it they hang, as to a guest whose network is down.
    pub(crate) reachable: AtomicBool,
    /// The routes of all requests, in their order.
    pub(crate) asked: Mutex<Vec<String>>,
}

pub(crate) type Reply = BoxFuture<'static, Response<ClientBody>>;

impl Connector for FakeAgent {
    /// Another port than the agent's is the test's own, of the loopback.
    fn connect(&self, port: u16) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        async move {
            if !self.reachable.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            match port {
                wrenn_envd::AGENT_PORT => TcpStream::connect(self.address).await,
                port => TcpStream::connect((self.address.ip(), port)).await,
            }
        }
        .boxed()
    }
}

impl FakeAgent {
    /// `answer` is given the route and the body of each request. The client lives as long as the agent is held.
    pub(crate) async fn start(
        answer: impl Fn(&str, Bytes) -> Reply + Send + Sync + 'static,
    ) -> (Arc<Self>, Arc<AgentClient>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let agent = Arc::new(Self { address, reachable: AtomicBool::new(true), asked: Mutex::default() });
        let (serving, answer) = (Arc::clone(&agent), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (agent, answer) = (Arc::clone(&serving), Arc::clone(&answer));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (agent, answer) = (Arc::clone(&agent), Arc::clone(&answer));
                    async move {
                        let route = request.uri().path().to_owned();
                        agent.asked.lock().unwrap().push(route.clone());
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        Ok::<_, Infallible>(answer(&route, body).await)
                    }
                });
                tokio::spawn(
                    async move { http1::Builder::new().serve_connection(TokioIo::new(stream), service).await },
                );
            }
        });
        let connector: Arc<dyn Connector> = agent.clone();
        let client = Arc::new(AgentClient::new(Arc::downgrade(&connector), None));
        (agent, client)
    }

    /// How often a route was asked for.
    pub(crate) fn count(&self, route: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == route).count()
    }
}

/// An answer that never comes.
pub(crate) fn silence() -> Reply {
    std::future::pending().boxed()
}

/// A plain answer.
pub(crate) fn plain(status: u16, content_type: &str, body: impl Into<Bytes>) -> Reply {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
    let response = Response::builder().status(status).header("content-type", content_type).body(body).unwrap();
    std::future::ready(response).boxed()
}

/// An answer without contents, as most calls have it.
pub(crate) fn done() -> Reply {
    plain(200, "application/proto", "")
}

/// What a stream of a process's events brings, one after another.
pub(crate) enum Told {
    Event(Event),
    /// The stream ends, as the protocol has it: with an error, or without.
    End(&'static str),
    /// Nothing comes for a while.
    Wait(Duration),
    /// Nothing comes before there is a permit.
    Until(Arc<Semaphore>),
    /// Nothing more comes.
    Silence,
}

/// A stream of a process's events.
pub(crate) fn events(told: impl IntoIterator<Item = Told, IntoIter: Send + Sync + 'static>) -> Reply {
    let frames = stream::iter(told).filter_map(|told| async move {
        match told {
            Told::Event(event) => Some(Ok(Frame::data(envelope(0, &message(event))))),
            Told::End(json) => Some(Ok(Frame::data(envelope(2, json.as_bytes())))),
            Told::Wait(time) => {
                tokio::time::sleep(time).await;
                None
            }
            Told::Until(permit) => {
                permit.acquire().await.unwrap().forget();
                None
            }
            Told::Silence => std::future::pending().await,
        }
    });
    let body = ClientBody::new(StreamBody::new(frames));
    let response = Response::builder().header("content-type", "application/connect+proto").body(body).unwrap();
    std::future::ready(response).boxed()
}

fn message(event: Event) -> Vec<u8> {
    let event = ProcessEvent { event: Some(event), ..Default::default() };
    StartResponse { event: event.into(), ..Default::default() }.encode_to_vec()
}

fn envelope(flags: u8, message: &[u8]) -> Bytes {
    let mut envelope = BytesMut::new();
    envelope.put_u8(flags);
    envelope.put_u32(u32::try_from(message.len()).unwrap());
    envelope.put_slice(message);
    envelope.freeze()
}

pub(crate) fn start(pid: u32) -> Told {
    Told::Event(StartEvent { pid, ..Default::default() }.into())
}

pub(crate) fn stdout(bytes: &[u8]) -> Told {
    data(Output::Stdout(bytes.to_vec().into()))
}

pub(crate) fn stderr(bytes: &[u8]) -> Told {
    data(Output::Stderr(bytes.to_vec().into()))
}

fn data(output: Output) -> Told {
    Told::Event(DataEvent { output: Some(output), ..Default::default() }.into())
}

pub(crate) fn lost(offset: u64, bytes: u64) -> Told {
    Told::Event(LostEvent { offset, bytes, ..Default::default() }.into())
}

pub(crate) fn exit(code: i32) -> Told {
    let status = format!("exit status {code}");
    Told::Event(EndEvent { exit_code: code, exited: true, status, ..Default::default() }.into())
}
