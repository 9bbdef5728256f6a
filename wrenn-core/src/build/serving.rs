//! The start command of a template, up to the moment in which it is ready.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

use crate::build::command::{Log, Surroundings};
use crate::build::event::BuildEventKind;
use crate::build::failure::Failure;
use crate::build::output::Redaction;
use crate::build::ready::{Check, Ready};
use crate::build::teller::Teller;
use crate::exec::event::Event;
use crate::sandbox::handle::Sandbox;

/// Starts a command, and returns when it is ready. The command goes on.
pub(super) async fn start(
    teller: &Teller,
    step: usize,
    sandbox: &Sandbox,
    words: &[String],
    surroundings: &Surroundings,
    ready: Option<&Ready>,
) -> Result<(), Failure> {
    let command = surroundings.command(sandbox, words)?.tag(START_TAG);
    let mut log = Log::new(teller, step, &Redaction::default());
    let mut child = command.spawn().await?;
    let Some(ready) = ready else { return Ok(()) };
    teller.tell(Some(step), BuildEventKind::ReadyWaiting);
    let is_ready = until(sandbox, surroundings, &ready.check);
    let late = sleep(ready.limit);
    tokio::pin!(is_ready, late);
    loop {
        let event = tokio::select! {
            biased;
            event = child.next_event() => event,
            () = &mut is_ready => break,
            () = &mut late => {
                let problem = format!("it is not ready after {:?}", ready.limit);
                return Err(Failure::of(problem).with_lines(log.end()));
            }
        };
        match event {
            Ok(Some(Event::Exit(status))) => {
                let problem = format!("the start command ended before it was ready: {status}");
                let failure = Failure::Step { problem, code: status.code(), last_lines: Vec::new(), source: None };
                return Err(failure.with_lines(log.end()));
            }
            Ok(Some(event)) => log.take(&event),
            Ok(None) => return Err(Failure::of("the start command's end was not told").with_lines(log.end())),
            Err(error) => return Err(Failure::from(error).with_lines(log.end())),
        }
    }
    log.end();
    // Without a reader, the agent keeps the newest of the output and drops the rest.
    drop(child);
    Ok(())
}

async fn until(sandbox: &Sandbox, surroundings: &Surroundings, check: &Check) {
    let began = Instant::now();
    loop {
        let is_ready = match check {
            Check::Port(port) => sandbox.connect(*port).await.is_ok(),
            Check::Http { port, path } => timeout(ATTEMPT_MAX, answers(sandbox, *port, path)).await.unwrap_or(false),
            Check::Command(line) => succeeds(sandbox, surroundings, line).await,
            Check::After(time) => began.elapsed() >= *time,
        };
        if is_ready {
            return;
        }
        sleep(POLL).await;
    }
}

/// Whether a `GET` is answered with a status of success.
async fn answers(sandbox: &Sandbox, port: u16, path: &str) -> bool {
    let ask = async {
        let mut stream = sandbox.connect(port).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut status = [0; STATUS_BYTES];
        stream.read_exact(&mut status).await.ok()?;
        Some(status)
    };
    ask.await.is_some_and(|status| status.starts_with(b"HTTP/1.") && status[8..10] == *b" 2")
}

async fn succeeds(sandbox: &Sandbox, surroundings: &Surroundings, line: &str) -> bool {
    let words = ["/bin/bash", "-c", line].map(str::to_owned);
    let Ok(command) = surroundings.command(sandbox, &words) else { return false };
    command.timeout(COMMAND_MAX).output().await.is_ok_and(|output| output.status.success())
}

/// By which a sandbox of the template finds its process.
pub(super) const START_TAG: &str = "start";
const POLL: Duration = Duration::from_millis(50);
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
const COMMAND_MAX: Duration = Duration::from_secs(30);
/// As far as the first digit of a status.
const STATUS_BYTES: usize = 10;
