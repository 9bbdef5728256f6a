//! QEMU's monitor protocol: one JSON object a line, one reply a command, events in between.
//! <https://www.qemu.org/docs/master/interop/qmp-spec.html>

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A connection whose greeting has been read and whose capabilities are negotiated.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    #[error("QEMU refused `{command}`: {description}")]
    Refused { command: String, description: String },
    #[error("QEMU did not answer `{command}` within {waited:?}")]
    TimedOut { command: String, waited: Duration },
    #[error("QEMU closed its monitor during `{command}`")]
    Closed { command: String },
    #[error("the monitor connection broke during `{command}`")]
    Io {
        command: String,
        #[source]
        source: io::Error,
    },
    #[error("QEMU sent something that is not QMP in answer to `{command}`")]
    Malformed {
        command: String,
        #[source]
        source: serde_json::Error,
    },
}

impl Qmp {
    /// Waits for the greeting, which QEMU sends when the machine is made and its memory is mapped.
    pub(super) async fn connect(stream: UnixStream, patience: Duration) -> Result<Self, QmpError> {
        let mut qmp = Self { stream: BufReader::new(stream) };
        within("greeting", patience, qmp.receive("greeting")).await?;
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returned.
    pub(super) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        within(command, COMMAND_TIMEOUT, async {
            let line = request(command, arguments);
            self.stream.get_mut().write_all(&line).await.map_err(io_error(command))?;
            self.reply(command).await
        })
        .await
    }

    /// Gives QEMU a descriptor under a name that later commands can use as `fd:NAME`.
    pub(super) async fn give_fd(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        let line = request("getfd", json!({ "fdname": name }));
        within("getfd", COMMAND_TIMEOUT, async {
            let stream = self.stream.get_ref();
            let sent = stream.async_io(Interest::WRITABLE, || send_with_fd(stream, &line, fd)).await;
            let sent = sent.map_err(io_error("getfd"))?;
            // A stream socket may take a part of the line; the descriptor went with its first byte.
            self.stream.get_mut().write_all(&line[sent..]).await.map_err(io_error("getfd"))?;
            self.reply("getfd").await
        })
        .await?;
        Ok(())
    }

    async fn reply(&mut self, command: &str) -> Result<Value, QmpError> {
        loop {
            let mut message = self.receive(command).await?;
            if let Some(error) = message.get("error") {
                let description = error["desc"].as_str().unwrap_or("no description").to_owned();
                return Err(QmpError::Refused { command: command.to_owned(), description });
            }
            if message.get("return").is_some() {
                return Ok(message["return"].take());
            }
            tracing::trace!(%message, "QMP event");
        }
    }

    async fn receive(&mut self, command: &str) -> Result<Value, QmpError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        match read.map_err(io_error(command))? {
            0 => Err(QmpError::Closed { command: command.to_owned() }),
            _ => serde_json::from_slice(&line)
                .map_err(|source| QmpError::Malformed { command: command.to_owned(), source }),
        }
    }
}

/// No command here does long work; a migration is started by one and asked after by others.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// The VMM is not trusted: the longest honest answer is a few KiB.
const LINE_BYTES_MAX: u64 = 1 << 20;

fn request(command: &str, arguments: Value) -> Vec<u8> {
    let mut request = json!({ "execute": command });
    if !arguments.is_null() {
        request["arguments"] = arguments;
    }
    let mut line = request.to_string().into_bytes();
    line.push(b'\n');
    line
}

fn send_with_fd(stream: &UnixStream, line: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let fds = [fd.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    Ok(sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(line)], &control, MsgFlags::MSG_NOSIGNAL, None)?)
}

fn io_error(command: &str) -> impl FnOnce(io::Error) -> QmpError {
    let command = command.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => QmpError::Closed { command },
        _ => QmpError::Io { command, source },
    }
}

async fn within<T>(
    command: &str,
    patience: Duration,
    work: impl Future<Output = Result<T, QmpError>>,
) -> Result<T, QmpError> {
    let late = || QmpError::TimedOut { command: command.to_owned(), waited: patience };
    timeout(patience, work).await.map_err(|_elapsed| late())?
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A scripted monitor: sends each line when a request has come in, the first unasked.
    async fn scripted(lines: &'static [&'static str]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let mut theirs = BufReader::new(theirs);
            for line in lines {
                theirs.get_mut().write_all(line.as_bytes()).await.unwrap();
                let mut request = String::new();
                if theirs.read_line(&mut request).await.unwrap() == 0 {
                    return;
                }
            }
        });
        ours
    }

    const GREETING: &str = "{\"QMP\": {\"version\": {}}}\n";
    const DONE: &str = "{\"return\": {}}\n";

    #[tokio::test]
    async fn events_before_a_reply_are_passed_over() {
        let stream =
            scripted(&[GREETING, DONE, "{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"paused\"}}\n"]).await;
        let mut qmp = Qmp::connect(stream, Duration::from_secs(1)).await.unwrap();
        assert_eq!(qmp.execute("query-status", Value::Null).await.unwrap()["status"], "paused");
    }

    #[tokio::test]
    async fn a_refusal_carries_the_command_and_qemus_words() {
        let stream =
            scripted(&[GREETING, DONE, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n"]).await;
        let mut qmp = Qmp::connect(stream, Duration::from_secs(1)).await.unwrap();
        let error = qmp.execute("cont", Value::Null).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused `cont`: no");
    }

    #[tokio::test]
    async fn a_monitor_that_closes_or_babbles_is_an_error() {
        let closed = Qmp::connect(scripted(&[]).await, Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(closed, QmpError::Closed { .. }), "{closed:?}");
        let rubbish = Qmp::connect(scripted(&["rubbish\n"]).await, Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(rubbish, QmpError::Malformed { .. }), "{rubbish:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_monitor_is_given_up_on() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = Qmp::connect(ours, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, QmpError::TimedOut { .. }), "{error:?}");
    }
}
