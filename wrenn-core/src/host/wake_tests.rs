//! Published ports that wake a paused sandbox, with a fake VMM and real sockets: no connection is lost, a sandbox is woken
//! once, and nothing stays open for longer than somebody is there for it. Every port of the fake guest is its agent, which
//! answers each request.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::host::events::HostEvents;
use crate::host::handle::Host;
use crate::host::lifecycle_tests::{fake_host, open_fake};
use crate::host::shutdown::Running;
use crate::id::SandboxId;
use crate::network::publish::PublishOptions;
use crate::sandbox::event::HostEventKind;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::paused::PausedSandbox;
use crate::state::{Exit, OnExpiry, PublishedPort, SandboxState, TtlFrom};
use crate::vmm::fake::{Op, Script};

const LONG: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(LONG, work).await.expect("it does not wait for ever")
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    soon(TcpStream::connect(address)).await
}

async fn ask(address: SocketAddr) -> io::Result<()> {
    answered(connect(address).await?).await
}

/// Sends a request, which is answered by the guest alone.
async fn answered(mut client: TcpStream) -> io::Result<()> {
    client.write_all(b"GET / HTTP/1.1\r\nhost: guest\r\n\r\n").await?;
    let mut status = [0; 12];
    soon(client.read_exact(&mut status)).await?;
    assert_eq!(&status, b"HTTP/1.1 204");
    Ok(())
}

async fn is_refused(address: SocketAddr) -> bool {
    connect(address).await.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

async fn until_refused(address: SocketAddr) {
    soon(async {
        while !is_refused(address).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Waits for the next event that is of interest.
async fn next(events: &mut HostEvents, mut is_it: impl FnMut(&HostEventKind) -> bool) -> HostEventKind {
    soon(async {
        loop {
            let kind = events.next().await.unwrap().unwrap().kind;
            if is_it(&kind) {
                return kind;
            }
        }
    })
    .await
}

async fn next_woken(events: &mut HostEvents) -> HostEventKind {
    next(events, |kind| matches!(kind, HostEventKind::Woken { .. })).await
}

/// A pause that is under way.
async fn pausing(sandbox: &Sandbox) -> JoinHandle<Result<()>> {
    let pausing = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.pause().await.map(drop) }
    });
    soon(async {
        while sandbox.state() != SandboxState::Saving {
            tokio::task::yield_now().await;
        }
    })
    .await;
    pausing
}

/// A sandbox with a port that wakes it.
async fn published(host: &Host) -> (Sandbox, PublishedPort) {
    let sandbox = Sandbox::create(host, "fake").await.unwrap();
    let port = sandbox.publish(8000, PublishOptions::default().wake(true)).await.unwrap();
    (sandbox, port)
}

async fn asleep(host: &Host) -> (PausedSandbox, PublishedPort) {
    let (sandbox, port) = published(host).await;
    (sandbox.pause().await.unwrap(), port)
}

fn restores(script: &Script) -> usize {
    script.take_log().into_iter().filter(|op| *op == Op::Restore).count()
}

fn is_running<T: std::fmt::Debug>(refusal: Result<T>) -> bool {
    matches!(refusal, Err(Error::InvalidState { state: SandboxState::Running, .. }))
}

/// The host knows of a sandbox from a moment after its wake on.
async fn woken(host: &Host, id: &SandboxId) -> Sandbox {
    soon(async {
        loop {
            match host.sandbox(id) {
                Ok(sandbox) => return sandbox,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_connection_wakes_a_sandbox_that_is_its_hosts_from_then_on() {
    let (_dir, host, script) = fake_host().await;
    let mut events = host.events();
    let (sandbox, port) = published(&host).await;
    let other = sandbox.publish(8001, PublishOptions::default()).await.unwrap();
    assert!(port.wake && !other.wake);
    let paused = sandbox.pause().await.unwrap();
    assert!(is_refused(other.address).await);
    assert_eq!(paused.published(), [port.clone(), other.clone()]);
    drop((sandbox, paused));
    script.take_log();

    ask(port.address).await.unwrap();
    assert_eq!(next_woken(&mut events).await, HostEventKind::Woken { address: port.address });
    next(&mut events, |kind| *kind == HostEventKind::Resumed).await;
    let id = host.sandboxes(&crate::SandboxFilter::new()).await.unwrap()[0].id.clone();
    let sandbox = host.sandbox(&id).unwrap();
    assert_eq!(sandbox.published(), [port.clone(), other.clone()]);
    drop(sandbox);
    ask(other.address).await.unwrap();
    assert_eq!(restores(&script), 1, "it runs on without a handle");

    let sandbox = host.sandbox(&id).unwrap();
    sandbox.pause().await.unwrap();
    assert_eq!(sandbox.wait().await, Exit::Paused);
    let (one, two) = tokio::join!(ask(port.address), ask(port.address));
    one.and(two).unwrap();
    assert_eq!(restores(&script), 1, "two connections wake it once");
    host.sandbox(&id).unwrap().kill().await.unwrap();
    assert!(is_refused(port.address).await);
    assert!(matches!(host.sandbox(&id), Err(Error::NotFound { .. })), "the host has let go of it");
}

#[tokio::test]
async fn a_connection_that_comes_while_its_sandbox_is_being_paused_is_carried_after_it() {
    let (_dir, host, script) = fake_host().await;
    let (sandbox, port) = published(&host).await;
    script.slow(Op::Save, SECOND);
    let pausing = pausing(&sandbox).await;
    let client = connect(port.address).await.unwrap();
    soon(pausing).await.unwrap().unwrap();
    answered(client).await.unwrap();
    let sandbox = woken(&host, sandbox.id()).await;

    // If the pause fails, the sandbox itself answers.
    script.fail(Op::Save, 1);
    script.take_log();
    let (paused, asked) = tokio::join!(sandbox.pause(), ask(port.address));
    assert!(paused.is_err());
    asked.unwrap();
    ask(port.address).await.unwrap();
    assert_eq!(restores(&script), 0);
}

#[tokio::test]
async fn a_kill_during_a_pause_wins_and_closes_the_port() {
    let (_dir, host, script) = fake_host().await;
    let (paused, port) = asleep(&host).await;
    let sandbox = paused.resume().await.unwrap();
    script.hang(Op::Save);
    let pausing = pausing(&sandbox).await;
    let client = connect(port.address).await.unwrap();
    soon(sandbox.kill()).await.unwrap();
    soon(pausing).await.unwrap().unwrap_err();
    assert!(answered(client).await.is_err());
    assert!(is_refused(port.address).await);
    assert!(matches!(host.paused(sandbox.id()).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_wake_that_fails_resets_its_connections_says_why_and_is_not_tried_again_at_once() {
    let (_dir, host, script) = fake_host().await;
    let mut events = host.events();
    let (paused, port) = asleep(&host).await;
    script.take_log();
    script.fail(Op::Restore, usize::MAX);
    let began = Instant::now();
    while began.elapsed() < 2 * SECOND {
        let reset = ask(port.address).await.unwrap_err();
        assert!(matches!(reset.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{reset:?}");
    }
    let (tried, most) = (restores(&script), 1 + began.elapsed().as_secs());
    assert!(tried >= 1 && tried as u64 <= most, "{tried} in {most} s");
    let HostEventKind::WakeFailed { error } =
        next(&mut events, |kind| matches!(kind, HostEventKind::WakeFailed { .. })).await
    else {
        unreachable!()
    };
    assert!(error.contains("Restore fails"), "{error}");

    script.fail(Op::Restore, 0);
    soon(async {
        while ask(port.address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    woken(&host, paused.id()).await.kill().await.unwrap();
}

#[tokio::test]
async fn of_a_wake_a_resume_and_a_delete_one_wins() {
    let (_dir, host, script) = fake_host().await;
    let mut events = host.events();
    let (paused, port) = asleep(&host).await;
    script.slow(Op::Restore, 2 * SECOND);
    script.take_log();
    let client = connect(port.address).await.unwrap();
    next_woken(&mut events).await;
    // It has the lock before it asks the VMM.
    soon(async {
        while restores(&script) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let (resumed, deleted) = tokio::join!(paused.resume(), paused.clone().delete());
    assert!(is_running(resumed) && is_running(deleted));
    answered(client).await.unwrap();

    let paused = woken(&host, paused.id()).await.pause().await.unwrap();
    script.take_log();
    let resuming = tokio::spawn({
        let paused = paused.clone();
        async move { paused.resume().await }
    });
    soon(async {
        while restores(&script) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let client = connect(port.address).await.unwrap();
    let sandbox = soon(resuming).await.unwrap().unwrap();
    answered(client).await.unwrap();
    assert_eq!(restores(&script), 0, "the connection has waited for the resume");
    drop(sandbox);
    until_refused(port.address).await;

    let paused = host.paused(paused.id()).await.unwrap();
    assert_eq!(paused.listen().await.unwrap(), std::slice::from_ref(&port));
    assert_eq!(paused.listen().await.unwrap(), std::slice::from_ref(&port), "it is open already");
    paused.delete().await.unwrap();
    assert!(is_refused(port.address).await);
}

#[tokio::test]
async fn a_resume_that_comes_to_nothing_leaves_the_port_asleep() {
    let (_dir, host, script) = fake_host().await;
    let (paused, port) = asleep(&host).await;
    script.fail(Op::Restore, 1);
    paused.resume().await.unwrap_err();
    script.slow(Op::Restore, LONG);
    timeout(SECOND, paused.resume()).await.unwrap_err();
    script.slow(Op::Restore, Duration::ZERO);
    ask(port.address).await.unwrap();
    woken(&host, paused.id()).await.kill().await.unwrap();
}

#[tokio::test]
async fn a_sandbox_that_nobody_uses_is_paused_and_woken_again_and_again() {
    let (_dir, host, _script) = fake_host().await;
    let mut events = host.events();
    let create = Sandbox::builder(&host, "fake").ttl(SECOND).ttl_from(TtlFrom::LastUse).on_expiry(OnExpiry::Pause);
    let sandbox = create.create().await.unwrap();
    let port = sandbox.publish(8000, PublishOptions::default().wake(true)).await.unwrap();
    drop(sandbox.wait().await);
    drop(sandbox);
    for _ in 0..3 {
        next(&mut events, |kind| *kind == HostEventKind::Paused).await;
        ask(port.address).await.unwrap();
    }
}

#[tokio::test]
async fn a_host_that_is_shut_down_or_gone_listens_no_more() {
    let (_dir, host, script) = fake_host().await;
    let mut events = host.events();
    let (_paused, port) = asleep(&host).await;
    let (_other, wakes) = asleep(&host).await;
    let (running, at) = published(&host).await;
    script.slow(Op::Restore, LONG);
    let client = connect(wakes.address).await.unwrap();
    next_woken(&mut events).await;
    assert!(soon(host.shutdown(Running::Pause)).await.is_empty());
    assert_eq!(running.state(), SandboxState::Paused);
    for port in [&port, &wakes, &at] {
        assert!(is_refused(port.address).await, "{port:?}");
    }
    assert!(answered(client).await.is_err());
    assert!(host.paused(running.id()).await.unwrap().listen().await.is_err());

    let (dir, host, script) = fake_host().await;
    let (paused, asleep) = asleep(&host).await;
    let (sandbox, port) = published(&host).await;
    drop(sandbox.pause().await.unwrap());
    drop(sandbox);
    ask(port.address).await.unwrap();
    script.take_log();
    drop(host);
    ask(port.address).await.unwrap();
    let id = paused.id().clone();
    drop(paused);
    // Whoever has a handle of a sandbox has its host.
    until_refused(asleep.address).await;
    until_refused(port.address).await;
    assert!(script.take_log().contains(&Op::Kill), "nobody could have it any more");

    let host = open_fake(&dir, &script).await;
    let taken = std::net::TcpListener::bind(asleep.address).unwrap();
    let paused = host.paused(&id).await.unwrap();
    let ports = paused.listen().await.unwrap();
    assert!(ports[0].problem.as_ref().unwrap().contains("is taken"), "{ports:?}");
    drop(taken);
    assert_eq!(paused.listen().await.unwrap(), std::slice::from_ref(&asleep));
    ask(asleep.address).await.unwrap();
    assert_eq!(woken(&host, &id).await.published(), [asleep]);
}
