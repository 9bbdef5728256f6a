//! How a stream begins: from a request to a process.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tracing::{Instrument as _, Span};
use wrenn_core::{Command, Sandbox};

use crate::api::v1::answer::Refused;
use crate::api::v1::streams::message::FromClient;
use crate::api::v1::streams::place::Place;
use crate::api::v1::streams::pump::{ClientGone, Process, Pump, Wanted};
use crate::api::v1::streams::socket::{Reading, Socket, Turn};

/// What a request asks for, if it is one for a WebSocket.
pub(super) type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// What a client's first message asks for.
pub(super) trait Start: DeserializeOwned + Send + 'static {
    /// The process, and what becomes of it when its client is gone.
    fn command(self, sandbox: &Sandbox) -> Result<(Command, ClientGone), Refused>;
}

/// Takes a client's stream where there is a sandbox for it, and refuses the request where there is none.
pub(super) async fn open<S: Start>(place: Place, upgrade: Upgrade) -> Result<Response, Refused> {
    place.running().await?;
    let upgrade = upgrade.map_err(|rejection| {
        let message = format!("{}: open a WebSocket here", rejection.body_text());
        match rejection {
            // What asks for another version, or without a key, has read of WebSockets.
            WebSocketUpgradeRejection::InvalidWebSocketVersionHeader(_)
            | WebSocketUpgradeRejection::WebSocketKeyHeaderMissing(_) => {
                Refused::new(rejection.status(), "no_websocket", message)
            }
            _ => Refused::wants_websocket(message),
        }
    })?;
    let slot = Arc::clone(&place.context.streams).try_acquire_owned().map_err(|_none| {
        let message = "the server has as many streams as it takes: close some, or try again later";
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", message)
    })?;
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    let request = Span::current();
    Ok(upgrade.on_upgrade(|socket| serve::<S>(Socket::new(socket, slot), place).instrument(request)))
}

async fn serve<S: Start>(mut socket: Socket, place: Place) {
    match begin::<S>(&mut socket, &place).await {
        Ok(Some(wanted)) => {
            if let Some(pump) = Pump::start(socket, place, wanted).await {
                pump.run().await;
            }
        }
        Ok(None) => {}
        Err(refused) => socket.fail(refused.into()).await,
    }
}

/// What the client wants to run; `None` if it is gone.
async fn begin<S: Start>(socket: &mut Socket, place: &Place) -> Result<Option<Wanted>, Refused> {
    let Ok(first) = timeout(START_MAX, first(socket)).await else {
        let message = format!("no `start` or `attach` came within {} seconds: send it at once", START_MAX.as_secs());
        return Err(Refused::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message));
    };
    let Some(text) = first? else { return Ok(None) };
    match serde_json::from_str::<FromClient<S>>(&text) {
        Ok(FromClient::Start(start)) => {
            let sandbox = place.running().await?;
            let (command, client_gone) = start.command(&sandbox)?;
            Ok(Some(Wanted { sandbox, process: Process::New(command), client_gone }))
        }
        Ok(FromClient::Attach(attach)) => {
            let (sandbox, process) = (place.running().await?, Process::Old(attach));
            // Whoever started it has said what becomes of it.
            Ok(Some(Wanted { sandbox, process, client_gone: ClientGone::Detach }))
        }
        Ok(_) => Err(Refused::bad_request("the first message is no `start` or `attach`")),
        Err(error) => Err(Refused::bad_request(format!("the first message is no `start` that can be used: {error}"))),
    }
}

async fn first(socket: &mut Socket) -> Result<Option<String>, Refused> {
    loop {
        match socket.turn(Reading::On).await {
            Turn::Sent => {}
            Turn::Received(Message::Text(text)) => return Ok(Some(text.to_string())),
            Turn::Received(_) => return Err(Refused::bad_request("the first message is binary: send `start` as text")),
            Turn::Unreadable(error) => {
                return Err(Refused::bad_request(format!("the first message cannot be read: {error}")));
            }
            Turn::Gone => return Ok(None),
        }
    }
}

const MESSAGE_BYTES_MAX: usize = 1 << 20;
const START_MAX: Duration = Duration::from_secs(30);
