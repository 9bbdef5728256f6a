//! Which connection carries which call, and what becomes of calls that are given up, against a server that is no agent.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::*;
use crate::agent::process::ProcessSpec;
use crate::exec::collect::collect;

struct FakeAgent {
    address: SocketAddr,
    /// How many connections were opened to it, and how many of them have ended.
    opened: AtomicUsize,
    ended: AtomicUsize,
    /// Of processes that were started, and that were signalled.
    started: Notify,
    signalled: Notify,
}

impl Connector for FakeAgent {
    fn connect(&self, _port: u16) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        TcpStream::connect(self.address).boxed()
    }
}

impl FakeAgent {
    async fn start() -> (Arc<Self>, Connections) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = Arc::new(Self {
            address,
            opened: AtomicUsize::default(),
            ended: AtomicUsize::default(),
            started: Notify::new(),
            signalled: Notify::new(),
        });
        let agent = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                agent.opened.fetch_add(1, Ordering::SeqCst);
                let agent = agent.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(&agent, request));
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    agent.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        let connector: Arc<dyn Connector> = this.clone();
        let connections = Connections::new(Arc::downgrade(&connector), None, Activity::new(), Activity::new());
        (this, connections)
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }

    /// Waits until so many have ended.
    async fn until_ended(&self, connections: usize) {
        while self.ended.load(Ordering::SeqCst) < connections {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// `/none` has no body, `/two` one in two pieces, `/endless` one that stands still after the first; `/last` is an
/// answer after which the connection is closed. A process says that it has started, and never anything more.
async fn answer(agent: &FakeAgent, request: Request<Incoming>) -> Result<Response<ClientBody>, Infallible> {
    let piece = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
    let pieces = stream::iter([piece("one"), piece("two")]);
    let response = match request.uri().path() {
        "/none" => Response::builder().status(204).body(full_body(Bytes::new())),
        "/two" => Response::builder().body(BodyExt::boxed(StreamBody::new(pieces))),
        "/endless" => {
            Response::builder().body(BodyExt::boxed(StreamBody::new(pieces.take(1).chain(stream::pending()))))
        }
        "/last" => Response::builder().header("connection", "close").body(full_body(Bytes::new())),
        "/process.Process/Start" => {
            agent.started.notify_one();
            // The envelope: no flags, and a length of four bytes; then a response with an event with a start with a
            // pid.
            let envelope: &[u8] = &[0, 0, 0, 0, 6, 0x0a, 4, 0x0a, 2, 0x08, 7];
            let body = stream::iter([Ok(Frame::data(envelope.into()))]).chain(stream::pending());
            Response::builder()
                .header("content-type", "application/connect+proto")
                .body(BodyExt::boxed(StreamBody::new(body)))
        }
        "/process.Process/List" => {
            Response::builder().header("content-type", "application/proto").body(full_body(Bytes::new()))
        }
        "/process.Process/SendSignal" => {
            agent.signalled.notify_one();
            Response::builder().header("content-type", "application/proto").body(full_body(Bytes::new()))
        }
        path => panic!("{path}"),
    };
    Ok(response.unwrap())
}

/// On a machine that is busy elsewhere for a moment a connection may be back too late for the next of a hundred calls.
const NEARLY_ONE: usize = 5;

async fn ask_for(connections: &Connections, route: &str) -> Result<Response<Answer>> {
    ask(connections, Method::GET, route, HeaderMap::new(), full_body(Bytes::new())).await
}

#[tokio::test]
async fn calls_that_follow_each_other_share_a_connection() {
    let (agent, connections) = FakeAgent::start().await;
    for _ in 0..100 {
        ask_for(&connections, "/none").await.unwrap();
        assert_eq!(collected(ask_for(&connections, "/two").await.unwrap().into_body(), 6).await.unwrap(), "onetwo");
    }
    assert!(agent.opened() <= NEARLY_ONE, "{}", agent.opened());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_the_end_of_an_answer_has_its_connection_kept_too() {
    let (agent, connections) = FakeAgent::start().await;
    for _ in 0..100 {
        let mut answer = ask_for(&connections, "/two").await.unwrap();
        answer.body_mut().frame().await.unwrap().unwrap();
    }
    assert!(agent.opened() <= NEARLY_ONE, "{}", agent.opened());
}

#[tokio::test]
async fn an_answer_that_is_dropped_and_goes_on_is_cut_off() {
    let (agent, connections) = FakeAgent::start().await;
    let answers = [ask_for(&connections, "/endless").await.unwrap(), ask_for(&connections, "/endless").await.unwrap()];
    ask_for(&connections, "/none").await.unwrap();
    assert_eq!(agent.opened(), 3, "each call has one to itself");
    drop(answers);
    agent.until_ended(2).await;
    ask_for(&connections, "/none").await.unwrap();
    assert_eq!(agent.opened(), 3);
}

#[tokio::test]
async fn one_that_the_agent_closes_is_replaced() {
    let (agent, connections) = FakeAgent::start().await;
    for round in 1..=10 {
        ask_for(&connections, "/last").await.unwrap();
        agent.until_ended(round).await;
        assert_eq!(agent.opened(), round);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_has_been_idle_for_longer_than_agents_wait_is_not_used() {
    let (agent, connections) = FakeAgent::start().await;
    for (idle_s, opened) in [(0, 1), (19, 1), (21, 2)] {
        tokio::time::advance(Duration::from_secs(idle_s)).await;
        ask_for(&connections, "/none").await.unwrap();
        assert_eq!(agent.opened(), opened, "after {idle_s} s");
    }
}

#[tokio::test]
async fn what_is_under_way_when_all_are_closed_fails_and_does_not_end() {
    let (agent, connections) = FakeAgent::start().await;
    let mut answer = ask_for(&connections, "/endless").await.unwrap();
    ask_for(&connections, "/none").await.unwrap();
    answer.body_mut().frame().await.unwrap().unwrap();
    connections.close();
    assert!(answer.body_mut().frame().await.unwrap().is_err());
    agent.until_ended(2).await;
    let refused = ask_for(&connections, "/none").await;
    assert!(matches!(refused, Err(AgentError::NotReachable { .. })), "{:?}", refused.err());
    assert_eq!(agent.opened(), 2);
}

#[tokio::test]
async fn a_command_that_is_given_up_while_its_answer_is_on_its_way_is_killed() {
    let (agent, _) = FakeAgent::start().await;
    let connector: Arc<dyn Connector> = agent.clone();
    let client = Arc::new(AgentClient::new(Arc::downgrade(&connector), None));
    let spec = ProcessSpec { cmd: "sleep".into(), ..Default::default() };
    let mut command = Box::pin(collect(&client, spec, None, 1 << 10));
    tokio::select! {
        biased;
        ended = &mut command => panic!("{ended:?}"),
        () = agent.started.notified() => {}
    }
    // The answer comes, and nobody looks at it.
    sleep(Duration::from_millis(50)).await;
    drop(command);
    tokio::time::timeout(Duration::from_secs(10), agent.signalled.notified()).await.expect("it is killed");
}

#[tokio::test]
async fn calls_and_their_pieces_are_use_and_what_the_host_asks_for_itself_is_none() {
    let (agent, _) = FakeAgent::start().await;
    let connector: Arc<dyn Connector> = agent.clone();
    let client = Arc::new(AgentClient::new(Arc::downgrade(&connector), None));
    let pause = || sleep(Duration::from_millis(5));
    let created = client.last_used();
    pause().await;
    client.call(Method::GET, "/two", HeaderMap::new(), Bytes::new()).await.unwrap();
    assert_eq!(client.last_used(), created, "the host's own");
    client.list().await.unwrap();
    let listed = client.last_used();
    assert!(listed > created);
    let mut answer =
        ask(&client.files, Method::GET, "/endless", HeaderMap::new(), full_body(Bytes::new())).await.unwrap();
    let asked = client.last_used();
    pause().await;
    answer.body_mut().frame().await.unwrap().unwrap();
    assert!(client.last_used() > asked, "a piece of a stream");
}
