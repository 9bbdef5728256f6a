//! A terminal of a sandbox: a shell, or another program, at a client's keyboard.

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
use crate::api::v1::streams::message::Size;
use crate::api::v1::streams::place::Place;
use crate::api::v1::streams::pump::ClientGone;
use crate::api::v1::streams::upgrade::{Start, Upgrade, open};
use crate::api::v1::variables::Variables;

/// A program to run at a terminal.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api::v1) struct TerminalStart {
    /// How many characters a line has.
    #[serde(default = "eighty")]
    #[schema(minimum = 1, maximum = 65535, default = 80)]
    cols: u16,
    /// How many lines there are.
    #[serde(default = "twenty_four")]
    #[schema(minimum = 1, maximum = 65535, default = 24)]
    rows: u16,
    /// The program, by its name or its path. Without, a login shell: `/bin/bash -i -l`.
    cmd: Option<String>,
    /// Its arguments, where `cmd` is given.
    #[serde(default)]
    args: Vec<String>,
    /// Variables of its environment, besides those of the sandbox.
    #[serde(default)]
    envs: Variables,
    /// The directory that it runs in. Without, the user's home.
    cwd: Option<String>,
    /// Whether it goes on when the client is gone, and is not killed then.
    #[serde(default)]
    #[schema(default = false)]
    detached: bool,
}
/// Runs a shell, or another program, at a terminal over a WebSocket.
///
/// The client first sends a `FromClient_TerminalStart` that is a `start`, then others, or input as binary messages. The
/// server sends what the terminal shows as binary messages, and else `FromServer`. The stream goes on through pauses of the
/// sandbox.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/terminal", operation_id = "terminal", tag = "commands",
    params(SandboxPath),
    responses((status = 101, description = "The WebSocket is open."), BadInput, NoWebSocket, Missing, Failing),
)]
pub(in crate::api::v1) async fn stream(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
    upgrade: Upgrade,
) -> Result<Response, Refused> {
    open::<TerminalStart>(Place { context, owner, id }, upgrade).await
}

impl Start for TerminalStart {
    fn command(self, sandbox: &Sandbox) -> Result<(Command, ClientGone), Refused> {
        let size = Size { cols: self.cols, rows: self.rows }.try_into()?;
        let mut command = match self.cmd {
            Some(cmd) => sandbox.command(cmd).args(self.args).pty(size),
            None if self.args.is_empty() => sandbox.pty(size),
            None => return Err(Refused::bad_request("args are given without cmd: name the program too")),
        };
        command = self.envs.add_to(command);
        if let Some(cwd) = self.cwd {
            command = command.current_dir(cwd);
        }
        Ok((command, if self.detached { ClientGone::Detach } else { ClientGone::Kill }))
    }
}

/// As a VT100 has it.
fn eighty() -> u16 {
    80
}

fn twenty_four() -> u16 {
    24
}
