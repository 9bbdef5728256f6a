//! A command of which a client has the input and the output.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;
use wrenn_core::{Command, Sandbox};

use crate::api::state::Context;
use crate::api::v1::answer::Refused;
use crate::api::v1::owner::Owner;
use crate::api::v1::path::SandboxPath;
use crate::api::v1::refusals::{BadInput, Failing, Missing, NoWebSocket};
use crate::api::v1::streams::place::Place;
use crate::api::v1::streams::pump::ClientGone;
use crate::api::v1::streams::upgrade::{Start, Upgrade, open};
use crate::api::v1::variables::Variables;

/// A command to run, with its input and its output as messages.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api::v1) struct ExecStart {
    /// The program, by its name or its path.
    #[schema(min_length = 1, pattern = r"^[^\u0000]+$")]
    cmd: String,
    /// Its arguments.
    #[serde(default)]
    args: Vec<String>,
    /// Variables of its environment, besides those of the sandbox.
    #[serde(default)]
    envs: Variables,
    /// The directory that it runs in. Without, the user's home.
    cwd: Option<String>,
    /// After how many seconds it is killed. Without, never. A pause does not count.
    #[schema(minimum = 1)]
    timeout_sec: Option<u32>,
    /// Whether it goes on when the client is gone, and is not killed then.
    #[serde(default)]
    #[schema(default = false)]
    detached: bool,
}
/// Runs a command with its input and its output as messages over a WebSocket.
///
/// The client first sends a `FromClient_ExecStart` that is a `start`, then others. The server sends `FromServer`. The stream
/// goes on through pauses of the sandbox.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/exec/stream", operation_id = "exec_stream", tag = "commands",
    params(SandboxPath),
    responses((status = 101, description = "The WebSocket is open."), BadInput, NoWebSocket, Missing, Failing),
)]
pub(in crate::api::v1) async fn stream(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
    upgrade: Upgrade,
) -> Result<Response, Refused> {
    open::<ExecStart>(Place { context, owner, id }, upgrade).await
}

impl Start for ExecStart {
    fn command(self, sandbox: &Sandbox) -> Result<(Command, ClientGone), Refused> {
        let mut command = sandbox.command(self.cmd).args(self.args).stdin_piped();
        command = self.envs.add_to(command);
        if let Some(cwd) = self.cwd {
            command = command.current_dir(cwd);
        }
        match self.timeout_sec {
            Some(0) => {
                return Err(Refused::bad_request("timeout_sec is 0: give it at least 1 second, or leave it out"));
            }
            Some(seconds) => command = command.timeout(Duration::from_secs(seconds.into())),
            None => {}
        }
        Ok((command, if self.detached { ClientGone::Detach } else { ClientGone::Kill }))
    }
}
