//! A child and its halves, with an agent whose answers are written here.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use super::*;
use crate::agent::fake::{FakeAgent, Reply, Told, done, events, exit, lost, plain, silence, start, stderr, stdout};
use crate::sandbox::fake::{self, FakeSandbox};
use crate::state::SandboxState;

const START: &str = "/process.Process/Start";
const CONNECT: &str = "/process.Process/Connect";
const INPUT: &str = "/process.Process/SendInput";
const CLOSE: &str = "/process.Process/CloseStdin";
const SIGNAL: &str = "/process.Process/SendSignal";

/// A sandbox whose agent answers a start with `told`, and everything else well.
async fn sandbox(told: impl Fn() -> Vec<Told> + Send + Sync + 'static) -> (Arc<FakeAgent>, FakeSandbox) {
    answering(move |route| if route == START { events(told()) } else { done() }).await
}

async fn answering(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> (Arc<FakeAgent>, FakeSandbox) {
    let (agent, client) = FakeAgent::start(move |route, _| answer(route)).await;
    (agent, fake::sandbox(client).await)
}

#[tokio::test]
async fn what_callers_await_is_small() {
    let (_agent, fake) = sandbox(|| vec![start(7), Told::Silence]).await;
    let sandbox = &fake.sandbox;
    let mut child = sandbox.command("x").spawn().await.unwrap();
    let files = sandbox.files();
    let bytes = [
        size_of_val(&sandbox.exec("x")),
        size_of_val(&sandbox.command("x").spawn()),
        size_of_val(&child.wait()),
        size_of_val(&files.read("x")),
        size_of_val(&files.write("x", "")),
        size_of_val(&files.list("x")),
        size_of_val(&sandbox.watch("x").start()),
        size_of_val(&sandbox.processes()),
    ];
    assert!(bytes.iter().all(|bytes| *bytes <= 8 << 10), "{bytes:?}");
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), work).await.expect("it does not wait for ever")
}

#[tokio::test]
async fn a_start_that_the_guest_holds_up_says_so_and_may_be_tried_again() {
    let held = || vec![Told::End(r#"{"error": {"code": "unavailable", "message": "the guest is frozen"}}"#)];
    let (_agent, fake) = sandbox(held).await;
    let spawned = soon(fake.sandbox.command("x").spawn()).await.map(drop).unwrap_err();
    let collected = soon(fake.sandbox.exec("x")).await.map(drop).unwrap_err();
    for error in [spawned, collected] {
        assert_eq!((error.code(), error.is_retryable()), ("agent_unavailable", true), "{error:?}");
        let told = crate::error::chain(&error);
        assert!(told.contains("the guest is frozen") && !told.contains("lost"), "{told}");
    }
}

#[tokio::test]
async fn both_halves_are_read_at_once_and_the_end_is_told() {
    let told = || vec![start(7), stdout(b"out1 "), stderr(b"err1 "), stdout(b"out2"), stderr(b"err2"), exit(3)];
    let (_agent, fake) = sandbox(told).await;
    let mut child = fake.sandbox.command("x").spawn().await.unwrap();
    let (mut out, mut err) = (child.take_stdout().unwrap(), child.take_stderr().unwrap());
    assert!(child.take_stdout().is_none() && child.take_stderr().is_none() && child.take_stdin().is_none());
    assert!(matches!(child.next_event().await, Err(Error::InvalidInput { .. })));
    let (mut stdout, mut stderr) = (String::new(), String::new());
    soon(async { tokio::try_join!(out.read_to_string(&mut stdout), err.read_to_string(&mut stderr)) }).await.unwrap();
    assert_eq!((stdout.as_str(), stderr.as_str()), ("out1 out2", "err1 err2"));
    assert_eq!(soon(child.wait()).await.unwrap().code(), Some(3));
    assert_eq!((child.try_wait().unwrap().unwrap().code(), child.offset()), (Some(3), 18));
}

#[tokio::test]
async fn what_nobody_has_taken_is_discarded_and_too_late_to_take() {
    let told = || {
        let noise = (0..1000).map(|_| stderr(&[b'e'; 1024]));
        [start(7)].into_iter().chain(noise).chain([stdout(b"end"), exit(0)]).collect()
    };
    let (_agent, fake) = sandbox(told).await;
    let mut child = fake.sandbox.command("x").spawn().await.unwrap();
    let mut out = child.take_stdout().unwrap();
    let mut stdout = String::new();
    soon(out.read_to_string(&mut stdout)).await.unwrap();
    assert!(stdout == "end" && child.take_stderr().is_none());
}

#[tokio::test]
async fn a_half_that_nobody_reads_holds_the_process_back_and_one_that_is_dropped_does_not() {
    let noise = || {
        [start(7)].into_iter().chain((0..64).map(|_| stderr(&[b'e'; 1024]))).chain([stdout(b"end"), exit(0)]).collect()
    };
    let (_agent, fake) = sandbox(noise).await;
    let mut child = fake.sandbox.command("x").spawn().await.unwrap();
    let (mut out, err) = (child.take_stdout().unwrap(), child.take_stderr().unwrap());
    let mut read = [0; 3];
    assert!(timeout(Duration::from_millis(200), out.read_exact(&mut read)).await.is_err(), "the other half is full");
    assert!(child.try_wait().unwrap().is_none());
    drop(err);
    soon(out.read_exact(&mut read)).await.unwrap();
    assert_eq!(&read, b"end");
}

#[tokio::test]
async fn halves_and_events_are_told_of_a_pause_and_go_on_in_the_sandbox_that_was_resumed() {
    // Before the pause one half is full.
    let told = || [start(7)].into_iter().chain((0..5).map(|_| stdout(b"before "))).chain([Told::Silence]).collect();
    let (_agent, fake) = sandbox(told).await;
    let mut child = fake.sandbox.command("x").spawn().await.unwrap();
    let (mut out, mut err) = (child.take_stdout().unwrap(), child.take_stderr().unwrap());
    assert!(timeout(Duration::from_millis(100), err.read_u8()).await.is_err());
    fake.pause();
    let broken = soon(err.read_u8()).await.unwrap_err();
    assert_eq!(broken.kind(), std::io::ErrorKind::ConnectionAborted);
    assert!(matches!(child.wait().await, Err(Error::InvalidState { state: SandboxState::Paused, .. })));

    let (_agent, resumed) = answering(|route| match route {
        CONNECT => events([start(7), stdout(b"after"), stderr(b"late"), exit(0)]),
        _ => done(),
    })
    .await;
    soon(child.reattach(&resumed.sandbox)).await.unwrap();
    let (mut stdout, mut stderr) = (String::new(), String::new());
    soon(async { tokio::try_join!(out.read_to_string(&mut stdout), err.read_to_string(&mut stderr)) }).await.unwrap();
    assert_eq!((stdout, stderr.as_str()), ("before ".repeat(5) + "after", "late"));
    assert!(soon(child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn a_gap_is_told_once_and_reading_goes_on() {
    let (_agent, fake) = sandbox(|| vec![start(7), stdout(b"a"), lost(1, 5), stdout(b"b"), exit(0)]).await;
    let mut child = fake.sandbox.command("x").spawn().await.unwrap();
    let mut out = child.take_stdout().unwrap();
    assert_eq!(soon(out.read_u8()).await.unwrap(), b'a');
    assert_eq!(soon(out.read_u8()).await.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    assert_eq!(soon(out.read_u8()).await.unwrap(), b'b');
    assert_eq!(soon(out.read(&mut [0; 1])).await.unwrap(), 0);
}

#[tokio::test]
async fn nobody_reads_for_halves_that_were_dropped() {
    let (_agent, fake) = sandbox(|| vec![start(7), Told::Silence]).await;
    let mut child = fake.sandbox.command("x").spawn().await.unwrap();
    let mut out = child.take_stdout().unwrap();
    assert!(timeout(Duration::from_millis(50), out.read_u8()).await.is_err());
    let handles = Arc::strong_count(fake.sandbox.agent());
    drop((child, out));
    // The task held the sandbox.
    for _ in 0..1000 {
        if Arc::strong_count(fake.sandbox.agent()) <= handles {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    sleep(Duration::from_millis(100)).await;
    assert!(tokio::runtime::Handle::current().metrics().num_alive_tasks() <= tasks);
}

#[tokio::test]
async fn an_input_is_written_in_order_closed_and_broken_when_the_process_has_gone() {
    let written = Arc::new(Mutex::new(Vec::new()));
    let (seen, gone) = (Arc::clone(&written), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let has_gone = Arc::clone(&gone);
    let (_agent, client) = FakeAgent::start(move |route, body| match route {
        START => events([start(7), Told::Silence]),
        INPUT | CLOSE if has_gone.load(std::sync::atomic::Ordering::SeqCst) => {
            plain(404, "application/json", r#"{"code":"not_found","message":"no process"}"#)
        }
        INPUT | CLOSE => {
            seen.lock().unwrap().push((route.to_owned(), body.len()));
            done()
        }
        _ => done(),
    })
    .await;
    let fake = fake::sandbox(client).await;
    let mut child = fake.sandbox.command("x").stdin_piped().spawn().await.unwrap();
    let mut stdin = child.take_stdin().unwrap();
    assert!(child.take_stdin().is_none());
    stdin.write_all(&vec![1; 600 << 10]).await.unwrap();
    soon(stdin.shutdown()).await.unwrap();
    assert_eq!(stdin.write(b"x").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    drop(stdin);
    let routes: Vec<_> = written.lock().unwrap().iter().map(|(route, _)| route.clone()).collect();
    assert_eq!(routes, [INPUT, INPUT, INPUT, CLOSE], "and no second close");

    // Dropping closes after what was written.
    let mut child = fake.sandbox.command("x").stdin_piped().spawn().await.unwrap();
    child.take_stdin().unwrap().write_all(b"x").await.unwrap();
    soon(async {
        while written.lock().unwrap().len() < 6 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(written.lock().unwrap()[5].0, CLOSE);

    let mut child = fake.sandbox.command("x").stdin_piped().spawn().await.unwrap();
    let mut stdin = child.take_stdin().unwrap();
    gone.store(true, std::sync::atomic::Ordering::SeqCst);
    stdin.write_all(b"x").await.unwrap();
    assert_eq!(soon(stdin.flush()).await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    soon(stdin.shutdown()).await.unwrap();
}

/// `cat`: it ends when its input is closed, and not before.
async fn cat() -> (Arc<FakeAgent>, FakeSandbox) {
    let closed = Arc::new(tokio::sync::Semaphore::new(0));
    answering(move |route| match route {
        START => events([start(7), Told::Until(Arc::clone(&closed)), stdout(b"all"), exit(0)]),
        CLOSE => {
            closed.add_permits(1);
            done()
        }
        _ => done(),
    })
    .await
}

#[tokio::test]
async fn a_command_that_reads_to_the_end_ends_whoever_waits() {
    let (agent, fake) = cat().await;
    let output = soon(fake.sandbox.command("cat").input("all").output()).await.unwrap();
    assert_eq!((output.stdout_utf8().as_str(), agent.count(INPUT), agent.count(CLOSE)), ("all", 1, 1));
    let (agent, fake) = cat().await;
    let mut child = fake.sandbox.command("cat").stdin_piped().spawn().await.unwrap();
    assert!(soon(child.wait()).await.unwrap().success());
    assert_eq!(agent.count(CLOSE), 1);
    assert!(soon(child.wait()).await.unwrap().success(), "and again");
    let (_agent, fake) = cat().await;
    let child = fake.sandbox.command("cat").stdin_piped().spawn().await.unwrap();
    assert_eq!(soon(child.wait_with_output()).await.unwrap().stdout_utf8(), "all");
}

#[tokio::test]
async fn a_collected_command_without_an_input_has_none_to_wait_for() {
    let (agent, client) = FakeAgent::start(|route, body| match route {
        // Field 4 of the request, `stdin`, is false: nothing is to be closed.
        START if body.windows(2).any(|field| field == [0x20, 0]) => events([start(7), exit(0)]),
        START => silence(),
        _ => done(),
    })
    .await;
    let fake = fake::sandbox(client).await;
    soon(fake.sandbox.command("cat").stdin_piped().output()).await.unwrap();
    assert_eq!(agent.count(CLOSE), 0);
}

#[tokio::test]
async fn an_end_is_looked_for_without_losing_what_came_before_it() {
    let told = || vec![start(7), stdout(b"a"), Told::Wait(Duration::from_millis(200)), stderr(b"b"), exit(9)];
    let (_agent, fake) = sandbox(told).await;
    let mut child = fake.sandbox.command("x").spawn().await.unwrap();
    assert!(child.try_wait().unwrap().is_none());
    let status = soon(async {
        loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None => sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    assert_eq!((status.code(), child.offset()), (Some(9), 0));
    let mut seen = Vec::new();
    while let Some(event) = child.next_event().await.unwrap() {
        seen.push(event);
    }
    let [Event::Stdout(a), Event::Stderr(b), Event::Exit(end)] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((&a[..], &b[..], end.code(), child.offset()), (&b"a"[..], &b"b"[..], Some(9), 2));
}

#[tokio::test]
async fn a_child_whose_time_is_up_says_so_with_what_it_wrote() {
    let up = r#"{"error":{"code":"deadline_exceeded","message":"its time was up"}}"#;
    let told = move || vec![start(7), stdout(b"so far"), Told::End(up)];
    let (_agent, fake) = sandbox(told).await;
    let command = fake.sandbox.command("x").timeout(Duration::from_secs(5));
    let error = soon(command.clone().spawn().await.unwrap().wait_with_output()).await.unwrap_err();
    let Error::CommandTimedOut { stdout, .. } = error else { panic!("{error:?}") };
    assert_eq!(stdout, b"so far");
    let mut child = command.spawn().await.unwrap();
    assert!(matches!(soon(child.wait()).await, Err(Error::CommandTimedOut { .. })));
}

#[tokio::test]
async fn words_of_bytes_and_every_signal_reach_the_agent_as_they_are() {
    use std::os::unix::ffi::OsStrExt as _;
    let sent = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sent);
    let (_agent, client) = FakeAgent::start(move |route, body| {
        seen.lock().unwrap().push((route.to_owned(), body.to_vec()));
        if route == START { events([start(7), Told::Silence]) } else { done() }
    })
    .await;
    let fake = fake::sandbox(client).await;
    let odd = std::ffi::OsStr::from_bytes(b"od\xffd");
    let child = fake.sandbox.command("cat").arg(odd).env("NAME", odd).current_dir(odd).spawn().await.unwrap();
    child.signal(Signal::USR1).await.unwrap();
    let sent = std::mem::take(&mut *sent.lock().unwrap());
    let odd_words = sent[0].1.windows(4).filter(|window| window == b"od\xffd").count();
    assert_eq!(odd_words, 3);
    let (route, body) = sent.last().unwrap();
    assert!(route == SIGNAL && body.ends_with(&[0x10, 10]), "{body:?}");
    assert!(matches!(fake.sandbox.command("x").env("A=B", "").spawn().await, Err(Error::InvalidInput { .. })));
}
