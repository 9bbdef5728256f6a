//! Commands in a sandbox.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wrenn_core::{ExitStatus, Output};

use crate::api::state::Context;
use crate::api::v1::answer::Refused;
use crate::api::v1::body::Body;
use crate::api::v1::encoding::Encoding;
use crate::api::v1::owner::Owner;
use crate::api::v1::path::SandboxPath;
use crate::api::v1::refusals::{Failing, Missing};
use crate::api::v1::variables::Variables;
use crate::service::error::ServiceError;
use crate::service::meters::Work;

/// A command to run to its end.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Exec {
    /// The program, by its name or its path. No shell reads it.
    #[schema(min_length = 1, pattern = r"^[^\u0000]+$", example = "python3")]
    cmd: String,
    /// Its arguments.
    #[serde(default)]
    #[schema(example = json!(["-c", "print(6 * 7)"]))]
    args: Vec<String>,
    /// After how many seconds it is killed.
    #[serde(default = "half_a_minute")]
    #[schema(minimum = 1, default = 30)]
    timeout_sec: u32,
    /// Variables of its environment, besides those of the sandbox.
    #[serde(default)]
    envs: Variables,
    /// The directory that it runs in. Without, the user's home.
    #[schema(pattern = r"^[^\u0000]*$", example = "/tmp")]
    cwd: Option<String>,
}

/// What a command has printed, and how it ended.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExecResult)]
pub(super) struct ExecBody {
    /// Where it ran.
    sandbox_id: String,
    /// The program, as it was named.
    cmd: String,
    /// Its standard output.
    #[schema(example = "42\n")]
    stdout: String,
    /// Its standard error.
    #[schema(example = "")]
    stderr: String,
    /// As a shell has it: 128 and the number of the signal that ended it.
    exit_code: i32,
    /// How long it ran.
    duration_ms: u64,
    /// How both streams are written: base64 where one of them is no text.
    encoding: Encoding,
}

/// Runs a command to its end.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/exec", operation_id = "exec", tag = "commands",
    params(SandboxPath), request_body = Exec,
    responses((status = 200, description = "It has ended, maybe with an exit code that is not 0.", body = ExecBody), Missing, Failing),
)]
pub(super) async fn exec(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
    Body(body): Body<Exec>,
) -> Result<Json<ExecBody>, Refused> {
    if body.timeout_sec == 0 {
        return Err(Refused::bad_request("timeout_sec is 0: give it at least 1 second"));
    }
    let sandbox = context.sandboxes.running(&owner, &id, "run a command").await?;
    let timeout = Duration::from_secs(body.timeout_sec.into());
    let mut command = sandbox.command(&body.cmd).args(&body.args).timeout(timeout);
    command = body.envs.add_to(command);
    if let Some(cwd) = &body.cwd {
        command = command.current_dir(cwd);
    }
    let work = async { command.output().await.map_err(ServiceError::from) };
    let output = context.sandboxes.meters().time(Work::Exec, work).await?;
    Ok(Json(ExecBody::new(id, body.cmd, output)))
}

impl ExecBody {
    fn new(sandbox_id: String, cmd: String, output: Output) -> Self {
        let Output { status, stdout, stderr, duration, .. } = output;
        let (stdout, stderr, encoding) = match (String::from_utf8(stdout), String::from_utf8(stderr)) {
            (Ok(stdout), Ok(stderr)) => (stdout, stderr, Encoding::Utf8),
            (stdout, stderr) => (base64(stdout), base64(stderr), Encoding::Base64),
        };
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self { sandbox_id, cmd, stdout, stderr, exit_code: exit_code(&status), duration_ms, encoding }
    }
}

fn base64(text: Result<String, std::string::FromUtf8Error>) -> String {
    STANDARD.encode(text.map_or_else(std::string::FromUtf8Error::into_bytes, String::into_bytes))
}

pub(super) fn exit_code(status: &ExitStatus) -> i32 {
    let of_signal = || status.signal().map_or(-1, |signal| 128 + signal.number());
    status.code().unwrap_or_else(of_signal)
}

fn half_a_minute() -> u32 {
    30
}
