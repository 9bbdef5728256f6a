//! A reader's events as the wire has them.

use std::{collections::VecDeque, os::unix::process::ExitStatusExt as _, process::ExitStatus, time::Duration};

use connectrpc::ConnectError;
use futures::{Stream, stream};
use nix::sys::signal::Signal;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::fanout::{Event, Finish, Output};
use crate::proto::process::{
    ProcessEvent,
    process_event::{self, DataEvent, EndEvent, KeepAlive, StartEvent},
};

/// The stream that a reader gets: the start, what was kept, what comes, the end; and a sign of life in between.
pub(super) fn events(
    pid: u32,
    backlog: Vec<Output>,
    receiver: mpsc::Receiver<Event>,
    keepalive: Duration,
) -> impl Stream<Item = Result<ProcessEvent, ConnectError>> + Send + 'static {
    let start = event(StartEvent { pid, ..Default::default() });
    let mut queued: VecDeque<_> = [Ok(start)].into();
    queued.extend(backlog.into_iter().map(|output| Ok(data(output))));
    stream::unfold((queued, receiver), move |(mut queued, mut receiver)| async move {
        if let Some(item) = queued.pop_front() {
            return Some((item, (queued, receiver)));
        }
        tokio::select! {
            received = receiver.recv() => match received? {
                Event::Output(output) => Some((Ok(data(output)), (queued, receiver))),
                Event::Finish(finish) => Some((end(finish), (queued, receiver))),
            },
            () = sleep_until(Instant::now() + keepalive) => Some((Ok(event(KeepAlive::default())), (queued, receiver))),
        }
    })
}

fn data(output: Output) -> ProcessEvent {
    let output = match output {
        Output::Stdout(bytes) => process_event::data_event::Output::Stdout(bytes.into()),
        Output::Stderr(bytes) => process_event::data_event::Output::Stderr(bytes.into()),
    };
    event(DataEvent { output: Some(output), ..Default::default() })
}

/// The end of a process; one whose time was up ends its readers' streams with an error, as clients expect.
fn end(finish: Finish) -> Result<ProcessEvent, ConnectError> {
    if finish.timed_out {
        return Err(ConnectError::deadline_exceeded("the process was killed: its time was up"));
    }
    let (exit_code, exited, status) = describe(finish.status);
    let error = (!finish.status.success()).then(|| status.clone());
    Ok(event(EndEvent { exit_code, exited, status, error, ..Default::default() }))
}

fn event(event: impl Into<process_event::Event>) -> ProcessEvent {
    ProcessEvent { event: Some(event.into()), ..Default::default() }
}

/// The exit code, whether it exited by itself, and the two as text: the words are Go's, which clients compare with.
fn describe(status: ExitStatus) -> (i32, bool, String) {
    match (status.code(), status.signal()) {
        (Some(code), _) => (code, true, format!("exit status {code}")),
        (None, Some(signal)) => {
            let core = if status.core_dumped() { " (core dumped)" } else { "" };
            (-1, false, format!("signal: {}{core}", signal_text(signal)))
        }
        (None, None) => (-1, false, "unknown".to_owned()),
    }
}

fn signal_text(number: i32) -> String {
    let text = match Signal::try_from(number) {
        Ok(Signal::SIGHUP) => "hangup",
        Ok(Signal::SIGINT) => "interrupt",
        Ok(Signal::SIGQUIT) => "quit",
        Ok(Signal::SIGILL) => "illegal instruction",
        Ok(Signal::SIGTRAP) => "trace/breakpoint trap",
        Ok(Signal::SIGABRT) => "aborted",
        Ok(Signal::SIGBUS) => "bus error",
        Ok(Signal::SIGFPE) => "floating point exception",
        Ok(Signal::SIGKILL) => "killed",
        Ok(Signal::SIGUSR1) => "user defined signal 1",
        Ok(Signal::SIGSEGV) => "segmentation fault",
        Ok(Signal::SIGUSR2) => "user defined signal 2",
        Ok(Signal::SIGPIPE) => "broken pipe",
        Ok(Signal::SIGALRM) => "alarm clock",
        Ok(Signal::SIGTERM) => "terminated",
        Ok(Signal::SIGXCPU) => "CPU time limit exceeded",
        Ok(Signal::SIGXFSZ) => "file size limit exceeded",
        _ => return format!("signal {number}"),
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_read_as_gos_do() {
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), (3, true, "exit status 3".to_owned()));
        assert_eq!(describe(ExitStatus::from_raw(9)), (-1, false, "signal: killed".to_owned()));
        assert_eq!(
            describe(ExitStatus::from_raw(11 | 0x80)),
            (-1, false, "signal: segmentation fault (core dumped)".to_owned())
        );
        assert_eq!(describe(ExitStatus::from_raw(40)).2, "signal: signal 40");
    }
}
