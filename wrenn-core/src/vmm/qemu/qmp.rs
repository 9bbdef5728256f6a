//! QEMU's monitor protocol: one JSON object a line, one reply a command, events in between.
//!
//! Each command has a number, which its reply repeats. So a late reply to a command that was given up is recognized and
//! skipped. <https://www.qemu.org/docs/master/interop/qmp-spec.html>

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::patience::patient;
use crate::vmm::console::escape_controls;

/// A connection whose greeting has been read and whose capabilities are negotiated.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    /// The part that was received of a line that is not complete.
    line: Vec<u8>,
    /// The number of the last command.
    number: u64,
    /// How long a command may take.
    patience: Duration,
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
        let mut qmp =
            Self { stream: BufReader::new(stream), line: Vec::new(), number: 0, patience: patient(COMMAND_TIMEOUT) };
        within("greeting", patience, qmp.receive("greeting")).await?;
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Gives each further command less time than [`COMMAND_TIMEOUT`].
    #[cfg(test)]
    pub(super) fn be_impatient(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Runs a command and returns what it returned.
    ///
    /// # Errors
    /// After any error other than [`QmpError::Refused`], the command may have been sent in part. No further command can
    /// be sent then, and the machine is ended.
    pub(super) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        within(command, self.patience, async {
            let line = self.request(command, arguments);
            self.stream.get_mut().write_all(&line).await.map_err(io_error(command))?;
            self.reply(command).await
        })
        .await
    }

    /// Gives QEMU a descriptor under a name that later commands can use as `fd:NAME`.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub(super) async fn give_fd(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        within("getfd", self.patience, async {
            let line = self.request("getfd", json!({ "fdname": name }));
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

    /// The line of the next command.
    fn request(&mut self, command: &str, arguments: Value) -> Vec<u8> {
        self.number += 1;
        let mut request = json!({ "execute": command, "id": self.number });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut line = request.to_string().into_bytes();
        line.push(b'\n');
        line
    }

    /// The reply to the last command.
    async fn reply(&mut self, command: &str) -> Result<Value, QmpError> {
        loop {
            let mut message = self.receive(command).await?;
            // An error without a number is QEMU's answer to a line that it could not read.
            let is_ours = match message.get("id") {
                Some(id) => *id == self.number,
                None => message.get("error").is_some(),
            };
            if !is_ours {
                tracing::trace!(%message, "an event, or a reply that came too late");
                continue;
            }
            if let Some(error) = message.get("error") {
                let description = escape_controls(error["desc"].as_str().unwrap_or("no description"));
                return Err(QmpError::Refused { command: command.to_owned(), description });
            }
            return Ok(message["return"].take());
        }
    }

    /// The next line. Where this is cancelled, the part that was received is kept.
    async fn receive(&mut self, command: &str) -> Result<Value, QmpError> {
        let left = LINE_BYTES_MAX.saturating_sub(self.line.len() as u64);
        let read = (&mut self.stream).take(left).read_until(b'\n', &mut self.line).await;
        read.map_err(io_error(command))?;
        let line = std::mem::take(&mut self.line);
        if !line.ends_with(b"\n") && (line.len() as u64) < LINE_BYTES_MAX {
            return Err(QmpError::Closed { command: command.to_owned() });
        }
        serde_json::from_slice(&line).map_err(|source| QmpError::Malformed { command: command.to_owned(), source })
    }
}

/// No command takes long: one command starts a migration, and others ask for its state.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// The VMM is not trusted: the longest honest answer is a few KiB.
const LINE_BYTES_MAX: u64 = 1 << 20;

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

    /// The number of a request, in the words of a reply to it.
    fn id_of(request: &str) -> String {
        let request: Value = serde_json::from_str(request).unwrap_or_default();
        format!("\"id\": {}", request["id"])
    }

    /// A scripted monitor: sends each line when a request has come in, the first unasked.
    async fn scripted(lines: &'static [&'static str]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let mut theirs = BufReader::new(theirs);
            let mut request = String::new();
            for line in lines {
                let line = line.replace("ID", &id_of(&request));
                theirs.get_mut().write_all(line.as_bytes()).await.unwrap();
                request.clear();
                if theirs.read_line(&mut request).await.unwrap() == 0 {
                    return;
                }
            }
        });
        ours
    }

    const GREETING: &str = "{\"QMP\": {\"version\": {}}}\n";
    const DONE: &str = "{\"return\": {}, ID}\n";

    #[tokio::test]
    async fn events_before_a_reply_are_passed_over() {
        let stream =
            scripted(&[GREETING, DONE, "{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"paused\"}, ID}\n"]).await;
        let mut qmp = Qmp::connect(stream, Duration::from_secs(1)).await.unwrap();
        assert_eq!(qmp.execute("query-status", Value::Null).await.unwrap()["status"], "paused");
    }

    #[tokio::test]
    async fn a_refusal_carries_the_command_and_qemus_words() {
        let stream =
            scripted(&[GREETING, DONE, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u001b[2J\"}, ID}\n"])
                .await;
        let mut qmp = Qmp::connect(stream, Duration::from_secs(1)).await.unwrap();
        let error = qmp.execute("cont", Value::Null).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused `cont`: no\\u{1b}[2J");
    }

    #[tokio::test]
    async fn a_monitor_that_closes_or_babbles_is_an_error() {
        let closed = Qmp::connect(scripted(&[]).await, Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(closed, QmpError::Closed { .. }), "{closed:?}");
        let rubbish = Qmp::connect(scripted(&["rubbish\n"]).await, Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(rubbish, QmpError::Malformed { .. }), "{rubbish:?}");
    }

    /// A monitor that answers its first command too late: a half of the answer before the time-out, a half after it.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_too_late_is_not_taken_for_the_next_one() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let mut theirs = BufReader::new(theirs);
            let mut request = String::new();
            theirs.get_mut().write_all(GREETING.as_bytes()).await.unwrap();
            theirs.read_line(&mut request).await.unwrap();
            theirs.get_mut().write_all(DONE.replace("ID", &id_of(&request)).as_bytes()).await.unwrap();
            let mut late = String::new();
            theirs.read_line(&mut late).await.unwrap();
            let answer = format!("{{\"return\": {{\"status\": \"late\"}}, {}}}\n", id_of(&late));
            let (before, after) = answer.split_at(answer.len() / 2);
            theirs.get_mut().write_all(before.as_bytes()).await.unwrap();
            tokio::time::sleep(COMMAND_TIMEOUT + Duration::from_secs(1)).await;
            theirs.get_mut().write_all(after.as_bytes()).await.unwrap();
            let mut next = String::new();
            theirs.read_line(&mut next).await.unwrap();
            let answer = format!("{{\"return\": {{\"status\": \"its own\"}}, {}}}\n", id_of(&next));
            theirs.get_mut().write_all(answer.as_bytes()).await.unwrap();
            let _ = theirs.read_line(&mut next).await;
        });
        let mut qmp = Qmp::connect(ours, Duration::from_secs(5)).await.unwrap();
        let error = qmp.execute("query-migrate", Value::Null).await.unwrap_err();
        assert!(matches!(error, QmpError::TimedOut { .. }), "{error:?}");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(qmp.execute("query-status", Value::Null).await.unwrap()["status"], "its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_monitor_is_given_up_on() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = Qmp::connect(ours, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, QmpError::TimedOut { .. }), "{error:?}");
    }
}
