//! The test binaries that run in the lab.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::tools::{Tools, Vmm};
use crate::shell;

/// Test targets of `wrenn-core`.
#[derive(Debug)]
pub(super) struct Selection(Vec<String>);

/// A test target that was built.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TestBinary {
    /// The target's name.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl Selection {
    /// Those of `named`, with every target called `firecracker*` where Firecracker is the VMM. For QEMU without a name,
    /// the targets that try the most of a VMM.
    pub(super) fn new(vmm: Vmm, named: &[String]) -> anyhow::Result<Self> {
        let mut targets = named.to_vec();
        match vmm {
            Vmm::Firecracker => targets.extend(firecrackers()?),
            Vmm::Qemu if named.is_empty() => targets.extend(OF_ANY_VMM.map(str::to_owned)),
            Vmm::Qemu => {}
        }
        targets.sort_unstable();
        targets.dedup();
        Ok(Self(targets))
    }

    /// Builds them without shared libraries, since the lab's system is another than the host's, and optimized: twice
    /// emulated, what they do themselves would take longer than what they wait for.
    pub(super) fn build(&self) -> anyhow::Result<Vec<TestBinary>> {
        println!("lab: building {}", self.0.join(", "));
        let mut command = self.cargo_test();
        command.args(["--no-run", "--message-format=json-render-diagnostics", "--target", shell::TARGET]);
        command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "2").env("CARGO_PROFILE_DEV_DEBUG", "0");
        command.env("RUSTFLAGS", shell::STATIC).stderr(Stdio::inherit());
        let output = command.output().context("cargo could not be started")?;
        ensure!(output.status.success(), "the tests could not be built ({})", output.status);
        let messages = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
        let built: Vec<_> = messages.lines().filter_map(built).collect();
        ensure!(built.len() == self.0.len(), "cargo built {} of {} test targets", built.len(), self.0.len());
        Ok(built)
    }

    /// Runs them on this machine.
    pub(super) fn run(&self, tools: &Tools, arguments: &[String]) -> anyhow::Result<i32> {
        let mut command = self.cargo_test();
        command.arg("--no-fail-fast").arg("--").args(arguments);
        command.envs(tools.variables());
        let status = command.status().context("cargo could not be started")?;
        Ok(status.code().unwrap_or(1))
    }

    fn cargo_test(&self) -> Command {
        let mut command = shell::cargo_command();
        command.args(["test", "--package", "wrenn-core", "--all-features"]);
        command.args(self.0.iter().flat_map(|target| ["--test", target]));
        command
    }
}

fn firecrackers() -> anyhow::Result<Vec<String>> {
    let directory = shell::workspace().join("wrenn-core/tests");
    let mut targets = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("there is no {}", directory.display()))? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        targets.extend(file.strip_suffix(".rs").filter(|name| name.starts_with(PREFIX)).map(str::to_owned));
    }
    ensure!(!targets.is_empty(), "wrenn-core has no tests called {PREFIX}*");
    Ok(targets)
}

/// The test binary that one of cargo's messages tells of, if it does.
fn built(message: &str) -> Option<TestBinary> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_test = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test");
    let path = message["executable"].as_str().filter(|_| is_test)?;
    Some(TestBinary { name: message["target"]["name"].as_str()?.to_owned(), path: path.into() })
}

const PREFIX: &str = "firecracker";
const OF_ANY_VMM: [&str; 4] = ["fork", "leftovers", "lifecycle", "refusals"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_targets_are_taken_from_cargos_messages() {
        let message = |kind: &str| {
            format!(r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"x"}},"executable":"/x"}}"#)
        };
        assert_eq!(built(&message("test")), Some(TestBinary { name: "x".to_owned(), path: "/x".into() }));
        assert_eq!(built(&message("bin")), None);
        assert_eq!(built(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(built("not json"), None);
    }
}
