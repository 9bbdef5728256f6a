//! A process's output goes on across lost connections, pauses and forks: no byte is lost, and none comes twice.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{run, sandbox};
use wrenn_core::{Child, Command, Error, Event, GuestEventKind, Sandbox, SandboxState};

/// Counts for ever, a number a line, as fast as it is read but for a breath now and then.
const COUNTER: &str = r"
import sys, time
n = 0
while True:
    sys.stdout.write(''.join(f'{i}\n' for i in range(n, n + 200))); sys.stdout.flush()
    n += 200; time.sleep(0.02)
";

fn counter(sandbox: &Sandbox) -> Command {
    sandbox.command("python3").args(["-u", "-c", COUNTER]).tag("counter")
}

/// What a reader of a [`COUNTER`] has seen.
#[derive(Clone, Debug, Default)]
struct Seen {
    next: u64,
    line: Vec<u8>,
    bytes: u64,
}

impl Seen {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = String::from_utf8(std::mem::take(&mut self.line)).unwrap();
            assert_eq!(line, self.next.to_string(), "a byte is lost, or came twice");
            self.next += 1;
        }
    }

    /// Reads until so many numbers more have come.
    async fn read(&mut self, child: &mut Child, numbers: u64) {
        let until = self.next + numbers;
        while self.next < until {
            match tokio::time::timeout(Duration::from_secs(60), child.next_event()).await.unwrap().unwrap() {
                Some(Event::Stdout(bytes)) => self.take(&bytes),
                other => panic!("{other:?} after {} numbers", self.next),
            }
        }
        assert_eq!(child.offset(), self.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_across_pauses_where_it_was() {
    vm_test_or_return!();
    let (_host, mut sandbox) = sandbox().await;
    let mut child = counter(&sandbox).spawn().await.unwrap();
    let mut seen = Seen::default();
    for _ in 0..3 {
        seen.read(&mut child, 2000).await;
        // The process goes on writing until it is frozen, and nobody reads that yet.
        let paused = sandbox.pause().await.unwrap();
        let stopped = child.next_event().await;
        assert!(matches!(stopped, Err(Error::InvalidState { state: SandboxState::Paused, .. })), "{stopped:?}");
        sandbox = paused.resume().await.unwrap();
        child.reattach(&sandbox).await.unwrap();
        seen.read(&mut child, 2000).await;
    }
    child.kill().await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), None);
    assert!(matches!(sandbox.attach(1).await, Err(Error::NotFound { .. })), "the agent is none of its processes");
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_misses_nothing_either() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    // Far more than can be under way: it stands still, with all on the way full.
    let mut child = sandbox.command("seq").args(["0", "400000"]).spawn().await.unwrap();
    let mut seen = Seen::default();
    seen.read(&mut child, 10).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    child.reattach(&sandbox).await.unwrap();
    let status = loop {
        match child.next_event().await.unwrap().unwrap() {
            Event::Stdout(bytes) => seen.take(&bytes),
            Event::Exit(status) => break status,
            other => panic!("{other:?} after {} numbers", seen.next),
        }
    };
    assert!(status.success() && seen.next == 400_001, "{status}, {} numbers", seen.next);
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_has_the_processes_of_its_parent_and_their_output() {
    vm_test_or_return!();
    let (_host, parent) = sandbox().await;
    let mut child = counter(&parent).spawn().await.unwrap();
    let mut seen = Seen::default();
    seen.read(&mut child, 1000).await;
    let before = seen.clone();
    let forks = parent.fork(2).await.unwrap();
    // The parent's own stream does not break.
    seen.read(&mut child, 3000).await;
    for fork in forks {
        let fork = fork.unwrap();
        let listed = fork.processes().await.unwrap();
        assert_eq!((listed.len(), listed[0].pid, listed[0].tag.as_deref()), (1, child.pid(), Some("counter")));
        let mut inherited = fork.attach_from(child.pid(), before.bytes).await.unwrap();
        before.clone().read(&mut inherited, 3000).await;
        // From its beginning, as far as that is still held.
        let mut again = fork.attach("counter").await.unwrap();
        match again.next_event().await.unwrap().unwrap() {
            Event::Stdout(bytes) => assert!(bytes.starts_with(b"0\n1\n2\n")),
            Event::Lost { bytes } => assert!(bytes > 0),
            other => panic!("{other:?}"),
        }
        inherited.kill().await.unwrap();
        inherited.wait().await.unwrap();
        assert_eq!(fork.processes().await.unwrap(), []);
        fork.kill().await.unwrap();
    }
    seen.read(&mut child, 1000).await;
    parent.kill().await.unwrap();
}

/// Closes every connection to the agent but its own, as a restore does.
const BREAK: &str = r"
import base64, json, os, sys, urllib.request
body = json.dumps({'entropy': base64.b64encode(os.urandom(32)).decode(), 'accessToken': sys.argv[1]}).encode()
headers = {'x-access-token': sys.argv[1], 'content-type': 'application/json'}
urllib.request.urlopen(urllib.request.Request('http://127.0.0.1:49983/init', body, headers, method='POST'), timeout=30)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_after_a_lost_connection_by_itself() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let mut child = counter(&sandbox).spawn().await.unwrap();
    let mut seen = Seen::default();
    let token = sandbox.agent_token().unwrap();
    for _ in 0..3 {
        seen.read(&mut child, 500).await;
        let broken = sandbox.command("python3").args(["-c", BREAK, &token]).output().await.unwrap();
        assert!(broken.status.success(), "{}", broken.stderr_utf8());
        seen.read(&mut child, 2000).await;
    }
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_is_no_longer_held_is_counted() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let child = sandbox.command("sh").args(["-c", "sleep 4; head -c 5000000 /dev/zero; sleep 600"]).tag("flood");
    let pid = child.spawn().await.unwrap().pid();
    // Nobody is attached, nor expected back, so that it does not wait.
    run(&sandbox, "sleep 8").await;
    let mut late = sandbox.attach(pid).await.unwrap();
    let Some(Event::Lost { bytes: lost }) = late.next_event().await.unwrap() else { panic!("nothing was lost") };
    let mut held = 0;
    while lost + held < 5_000_000 {
        let Some(Event::Stdout(bytes)) = late.next_event().await.unwrap() else { panic!("it was not all") };
        held += bytes.len() as u64;
    }
    assert!(lost + held == 5_000_000 && held > 512 << 10, "{lost} lost, {held} held");
    assert_eq!(late.offset(), 5_000_000);
    let ahead = sandbox.attach_from(pid, 5_000_001).await;
    assert!(matches!(ahead, Err(Error::InvalidInput { .. })), "{ahead:?}");
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_guest_is_told_who_it_is_and_how_it_came_to_be() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let set_up = "mkdir -p /etc/wrenn/hooks/before-thaw.d && cd /etc/wrenn/hooks/before-thaw.d && \
                  printf '#!/bin/sh\\necho $WRENN_EVENT >>/var/tmp/events\\n' >log && chmod 755 log";
    let set_up = sandbox.command("sh").args(["-c", set_up]).user("root").output().await.unwrap();
    assert!(set_up.status.success(), "{}", set_up.stderr_utf8());
    let who = "echo $E2B_SANDBOX_ID $E2B_TEMPLATE_ID";
    assert_eq!(run(&sandbox, who).await, format!("{} base", sandbox.id()));
    let created = sandbox.guest_events(0).await.unwrap().last().map(|event| (event.number, event.kind)).unwrap();
    assert_eq!(created.1, GuestEventKind::Created);
    let created = created.0;
    let fork = sandbox.fork(1).await.unwrap().remove(0).unwrap();
    assert_eq!(run(&fork, who).await, format!("{} base", fork.id()));
    assert_eq!(run(&fork, "cat /var/tmp/events").await, "forked");
    assert_eq!(kinds(&fork, created).await, [GuestEventKind::Forked]);
    assert_eq!(kinds(&sandbox, created).await, [GuestEventKind::Continued]);
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "cat /var/tmp/events").await, "continued\nresumed");
    let heard = kinds(&sandbox, created).await;
    assert_eq!(heard, [GuestEventKind::Continued, GuestEventKind::Resumed]);
    // Whoever waits is told that there will be nothing to hear.
    let waiting = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.guest_events(created + 2).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    sandbox.pause().await.unwrap();
    assert!(matches!(waiting.await.unwrap(), Err(Error::InvalidState { .. })));
    fork.kill().await.unwrap();
}

async fn kinds(sandbox: &Sandbox, after: u64) -> Vec<GuestEventKind> {
    sandbox.guest_events(after).await.unwrap().iter().map(|event| event.kind).collect()
}

/// How far a guest's clock is from the host's, in seconds.
async fn clock_error(sandbox: &Sandbox) -> f64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let before = now();
    let theirs: f64 = run(sandbox, "date +%s.%N").await.parse().unwrap();
    let after = now();
    if theirs < before { before - theirs } else { (theirs - after).max(0.0) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_knows_what_time_it_is_after_a_pause_and_a_fork() {
    vm_test_or_return!();
    let (host, sandbox) = sandbox().await;
    // The agent leaves a clock alone that is at most 50 ms behind; the rest is what a step may be late on a loaded machine.
    const LATE_MAX: f64 = 0.5;
    let paused = sandbox.pause().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let sandbox = paused.resume().await.unwrap();
    let error = clock_error(&sandbox).await;
    assert!(error < LATE_MAX, "after a pause of 3 s it is {error} s off");
    sandbox.snapshot("late-clock").await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let copy = Sandbox::create(&host, "late-clock").await.unwrap();
    let error = clock_error(&copy).await;
    assert!(error < LATE_MAX, "in a template's copy it is {error} s off");
    host.remove_template("late-clock").await.unwrap();
    for sandbox in [sandbox, copy] {
        sandbox.kill().await.unwrap();
    }
}
