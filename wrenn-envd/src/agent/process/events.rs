//! A reader's events as the wire has them.

use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus, time::Duration};

use buffa::{Message, Rope};
use bytes::Bytes;
use connectrpc::{CodecFormat, ConnectError, Encodable, EncodedBody};
use futures::{Stream, StreamExt as _, stream};
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::time::timeout;

use super::{
    journal::{Entry, Finish, Reader},
    ring::{Channel, Chunk},
};
use crate::proto::process::{
    ProcessEvent,
    process_event::{self, DataEvent, EndEvent, KeepAlive, LostEvent, StartEvent, data_event},
};

/// Whether a client counts output, and is told of what is lost and of how much there was. An offset in each event would go
/// out behind the output, in a packet of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offsets {
    /// It did not ask, and sees E2B's events alone.
    Hidden,
    Shown,
}

/// An answer of the stream, whose output is sent from where it lies.
pub(super) struct Shared<M>(pub(super) M);

impl<M: Message + Serialize> Encodable<M> for Shared<M> {
    fn encode(&self, codec: CodecFormat) -> Result<Bytes, ConnectError> {
        Encodable::<M>::encode(&self.0, codec)
    }

    fn encode_segments(&self, codec: CodecFormat) -> Result<EncodedBody, ConnectError> {
        if codec != CodecFormat::Proto {
            return self.encode(codec).map(EncodedBody::from);
        }
        let mut rope = Rope::with_min_segment(SHARED_BYTES_MIN);
        self.0.encode(&mut rope);
        Ok(EncodedBody::from_segments(rope.into_segments()))
    }
}

/// Less is sent sooner with what is around it.
const SHARED_BYTES_MIN: usize = 16 << 10;

/// The stream that a reader gets: the start, the output, the end; and a sign of life in between.
pub(super) fn events(
    pid: u32,
    reader: Reader,
    offsets: Offsets,
    keepalive: Duration,
) -> impl Stream<Item = Result<ProcessEvent, ConnectError>> + Send + 'static {
    let offset = (offsets == Offsets::Shown).then(|| reader.position());
    let start = event(StartEvent { pid, offset, ..Default::default() });
    let rest = stream::unfold(reader, move |mut reader| async move {
        loop {
            let item = match timeout(keepalive, reader.next()).await {
                Ok(Some(Entry::Lost { .. })) if offsets == Offsets::Hidden => continue,
                Ok(entry) => on_the_wire(entry?, offsets),
                Err(_) => Ok(event(KeepAlive::default())),
            };
            return Some((item, reader));
        }
    });
    stream::once(async { Ok(start) }).chain(rest)
}

fn on_the_wire(entry: Entry, offsets: Offsets) -> Result<ProcessEvent, ConnectError> {
    let shown = |offset| (offsets == Offsets::Shown).then_some(offset);
    match entry {
        Entry::Output(chunk) => Ok(data(chunk)),
        Entry::Lost { offset, bytes } => Ok(event(LostEvent { offset, bytes, ..Default::default() })),
        Entry::Finish { finish, offset } => end(finish, shown(offset)),
    }
}

fn data(chunk: Chunk) -> ProcessEvent {
    let output = match chunk.channel {
        Channel::Stdout => data_event::Output::Stdout(chunk.bytes),
        Channel::Stderr => data_event::Output::Stderr(chunk.bytes),
        Channel::Pty => data_event::Output::Pty(chunk.bytes),
    };
    event(DataEvent { output: Some(output), ..Default::default() })
}

/// The end of a process; one whose time was up ends its readers' streams with an error, as clients expect.
fn end(finish: Finish, offset: Option<u64>) -> Result<ProcessEvent, ConnectError> {
    if finish.timed_out {
        return Err(ConnectError::deadline_exceeded("the process was killed: its time was up"));
    }
    let (exit_code, exited, status) = describe(finish.status);
    let error = (!finish.status.success()).then(|| status.clone());
    Ok(event(EndEvent { exit_code, exited, status, error, offset, ..Default::default() }))
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
