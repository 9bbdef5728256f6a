//! Running cargo, with its output in view.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// Runs cargo in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    cargo_with(arguments, &[])
}

/// Runs cargo in the workspace, with variables in its environment.
pub(crate) fn cargo_with(arguments: &[&str], envs: &[(&str, &str)]) -> anyhow::Result<()> {
    let mut command = cargo_command();
    command.args(arguments).envs(envs.iter().copied());
    let status = command.status().context("cargo could not be started")?;
    ensure!(status.success(), "`cargo {}` failed ({status})", arguments.join(" "));
    Ok(())
}

/// Runs a program that has to succeed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("`{program}` could not be started"))?;
    ensure!(status.success(), "`{program}` failed ({status})");
    Ok(())
}

/// `text` as one word of a shell's.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

pub(crate) fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// The workspace's root.
pub(crate) fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// What is built to run on another system than this one.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The compiler's flags for a binary that needs no shared libraries.
pub(crate) const STATIC: &str = "-C target-feature=+crt-static";
