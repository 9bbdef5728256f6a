//! Commands in a sandbox.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use wrenn_core::{ExitStatus, Output};

use crate::api::state::Context;
use crate::api::v1::answer::Refused;
use crate::api::v1::body::Body;
use crate::api::v1::owner::Owner;
use crate::service::error::ServiceError;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exec {
    cmd: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default = "half_a_minute")]
    timeout_sec: u32,
    #[serde(default)]
    envs: BTreeMap<String, String>,
    cwd: Option<String>,
}

/// What a command has printed, and how it ended.
#[derive(Debug, Serialize)]
pub(super) struct ExecBody {
    sandbox_id: String,
    cmd: String,
    stdout: String,
    stderr: String,
    /// As a shell has it: 128 and the number of the signal that ended it.
    exit_code: i32,
    duration_ms: u64,
    encoding: &'static str,
}

pub(super) async fn exec(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(body): Body<Exec>,
) -> Result<Json<ExecBody>, Refused> {
    if body.timeout_sec == 0 {
        return Err(Refused::bad_request("timeout_sec is 0: give it at least 1 second"));
    }
    let sandbox = context.sandboxes.running(&owner, &id, "run a command").await?;
    let timeout = Duration::from_secs(body.timeout_sec.into());
    let mut command = sandbox.command(&body.cmd).args(&body.args).timeout(timeout);
    for (name, value) in &body.envs {
        command = command.env(name, value);
    }
    if let Some(cwd) = &body.cwd {
        command = command.current_dir(cwd);
    }
    let output = command.output().await.map_err(ServiceError::from)?;
    Ok(Json(ExecBody::new(id, body.cmd, output)))
}

impl ExecBody {
    fn new(sandbox_id: String, cmd: String, output: Output) -> Self {
        let Output { status, stdout, stderr, duration, .. } = output;
        let (stdout, stderr, encoding) = match (String::from_utf8(stdout), String::from_utf8(stderr)) {
            (Ok(stdout), Ok(stderr)) => (stdout, stderr, "utf-8"),
            (stdout, stderr) => (base64(stdout), base64(stderr), "base64"),
        };
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self { sandbox_id, cmd, stdout, stderr, exit_code: exit_code(&status), duration_ms, encoding }
    }
}

fn base64(text: Result<String, std::string::FromUtf8Error>) -> String {
    STANDARD.encode(text.map_or_else(std::string::FromUtf8Error::into_bytes, String::into_bytes))
}

fn exit_code(status: &ExitStatus) -> i32 {
    let of_signal = || status.signal().map_or(-1, |signal| 128 + signal.number());
    status.code().unwrap_or_else(of_signal)
}

fn half_a_minute() -> u32 {
    30
}
