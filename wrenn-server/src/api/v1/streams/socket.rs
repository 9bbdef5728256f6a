//! A client's end of a stream, and whether the client is there.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use futures::{Sink as _, Stream as _};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use crate::api::v1::streams::message::FromServer;

/// A WebSocket that has one message under way at most.
///
/// A client is gone when it has closed the connection, or when nothing is heard of it for [`SILENCE_MAX`]: no message, no answer to
/// a ping, and no room for more of what it is sent.
#[derive(Debug)]
pub(super) struct Socket {
    inner: WebSocket,
    sending: Sending,
    heard_at: Instant,
    /// Whether the client sent what cannot be read, nor what comes after it.
    is_unreadable: bool,
    pings: Interval,
    /// Its part of the streams that there may be.
    _slot: OwnedSemaphorePermit,
}

/// How far the message that was sent last has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Done,
    Begun,
    /// It waits until the client takes more.
    Stuck,
}

/// Whether to read on. A client that is not read waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    On,
    Off,
}

/// What came of a socket.
#[derive(Debug)]
pub(super) enum Turn {
    /// The last message has gone out.
    Sent,
    /// Text or binary.
    Received(Message),
    /// What the client sent cannot be read, such as a message that is too large.
    Unreadable(String),
    /// The client is gone.
    Gone,
}

impl Socket {
    pub(super) fn new(inner: WebSocket, slot: OwnedSemaphorePermit) -> Self {
        let mut pings = interval(PING_EACH);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { inner, sending: Sending::Done, heard_at: Instant::now(), is_unreadable: false, pings, _slot: slot }
    }

    /// Whether a message can be sent.
    pub(super) fn is_free(&self) -> bool {
        self.sending == Sending::Done
    }

    /// Sends a message, which [`turn`](Self::turn) brings out. The socket has to be free.
    pub(super) fn send(&mut self, message: impl Into<Message>) {
        self.sending = Sending::Begun;
        // Whatever is wrong is so at the next turn too.
        Pin::new(&mut self.inner).start_send(message.into()).ok();
    }

    /// Waits for what comes next.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    pub(super) async fn turn(&mut self, reading: Reading) -> Turn {
        std::future::poll_fn(|context| self.poll_turn(context, reading)).await
    }

    /// Sends a last message, and closes.
    pub(super) async fn fail(mut self, message: FromServer) {
        while !self.is_free() {
            if let Turn::Gone = self.turn(Reading::Off).await {
                return;
            }
        }
        self.send(message);
        self.close().await;
    }

    /// Waits for the last message to go out, and for the client to close too, but not for long.
    pub(super) async fn close(mut self) {
        // The end of a connection with something unread takes from the client what it has not read either.
        let patience = if self.is_unreadable { UNREADABLE_MAX } else { CLOSE_MAX };
        let close = async {
            while !self.is_free() {
                if let Turn::Gone = self.turn(Reading::Off).await {
                    return;
                }
            }
            self.send(Message::Close(None));
            let reading = if self.is_unreadable { Reading::Off } else { Reading::On };
            while !matches!(self.turn(reading).await, Turn::Gone) {}
        };
        timeout(patience, close).await.ok();
    }

    fn poll_turn(&mut self, context: &mut Context<'_>, reading: Reading) -> Poll<Turn> {
        if let Poll::Ready(turn) = self.poll_sent(context) {
            return Poll::Ready(turn);
        }
        match reading {
            Reading::On => {
                if let Poll::Ready(turn) = self.poll_received(context) {
                    return Poll::Ready(turn);
                }
            }
            // Its answers to pings are behind what is not read.
            Reading::Off => self.heard_at = Instant::now(),
        }
        self.poll_silence(context)
    }

    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<Turn> {
        if self.is_free() {
            return Poll::Pending;
        }
        match Pin::new(&mut self.inner).poll_flush(context) {
            Poll::Ready(Ok(())) => {
                if self.sending == Sending::Stuck {
                    self.heard_at = Instant::now();
                }
                self.sending = Sending::Done;
                Poll::Ready(Turn::Sent)
            }
            Poll::Ready(Err(_)) => Poll::Ready(Turn::Gone),
            Poll::Pending => {
                self.sending = Sending::Stuck;
                Poll::Pending
            }
        }
    }

    fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<Turn> {
        loop {
            let Poll::Ready(received) = Pin::new(&mut self.inner).poll_next(context) else { return Poll::Pending };
            self.heard_at = Instant::now();
            return Poll::Ready(match received {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => Turn::Received(message),
                Some(Ok(Message::Close(_))) | None => Turn::Gone,
                Some(Err(error)) => {
                    self.is_unreadable = true;
                    Turn::Unreadable(error.to_string())
                }
            });
        }
    }

    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<Turn> {
        while self.pings.poll_tick(context).is_ready() {
            if self.heard_at.elapsed() > SILENCE_MAX {
                return Poll::Ready(Turn::Gone);
            }
            if self.is_free() {
                self.send(Message::Ping(axum::body::Bytes::new()));
                if let Poll::Ready(turn) = self.poll_sent(context) {
                    return Poll::Ready(turn);
                }
            }
        }
        Poll::Pending
    }
}

const PING_EACH: Duration = Duration::from_secs(10);
/// Seen at a ping, and so after a minute.
const SILENCE_MAX: Duration = Duration::from_secs(51);
const CLOSE_MAX: Duration = Duration::from_secs(5);
const UNREADABLE_MAX: Duration = Duration::from_secs(1);
