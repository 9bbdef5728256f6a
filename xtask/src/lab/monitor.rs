//! QEMU's monitor, to look into a machine that stands still.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The place of the monitor's socket, which goes with this.
#[derive(Debug)]
pub(super) struct Monitor(TempDir);

impl Monitor {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self(tempfile::Builder::new().prefix("wrenn-lab-").tempdir()?))
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.0.path().join("monitor")
    }

    /// The registers of every processor, without those of its arithmetic; or why they cannot be had.
    pub(super) async fn registers(&self) -> String {
        match timeout(ANSWER_MAX, self.ask("info registers -a")).await {
            Ok(Ok(registers)) => without_arithmetic(&registers),
            Ok(Err(error)) => format!("the registers cannot be read: {error:#}\n"),
            Err(_elapsed) => format!("QEMU's monitor did not answer within {} s\n", ANSWER_MAX.as_secs()),
        }
    }

    /// What QEMU's monitor for people answers to `line`.
    async fn ask(&self, line: &str) -> anyhow::Result<String> {
        let stream = UnixStream::connect(self.socket()).await.context("QEMU has no monitor")?;
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let requests = [
            json!({"execute": "qmp_capabilities"}),
            json!({"execute": "human-monitor-command", "arguments": {"command-line": line}}),
        ];
        for request in requests {
            writer.write_all(format!("{request}\n").as_bytes()).await?;
        }
        while let Some(line) = lines.next_line().await? {
            let answer: Value = serde_json::from_str(&line).context("QEMU's monitor does not speak JSON")?;
            ensure!(answer.get("error").is_none(), "QEMU's monitor refuses: {answer}");
            if let Some(text) = answer["return"].as_str() {
                return Ok(text.replace('\r', ""));
            }
        }
        anyhow::bail!("QEMU's monitor was closed")
    }
}

fn without_arithmetic(registers: &str) -> String {
    let is_kept = |line: &&str| !ARITHMETIC.iter().any(|name| line.starts_with(name));
    registers.lines().filter(is_kept).map(|line| format!("  {line}\n")).collect()
}

const ANSWER_MAX: Duration = Duration::from_secs(15);
const ARITHMETIC: [&str; 6] = ["FCW", "FPR", "XMM", "YMM", "Opmask", "ZMM"];

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn the_registers_are_read_and_a_monitor_without_an_answer_is_told() {
        let monitor = Monitor::new().unwrap();
        assert!(monitor.registers().await.contains("QEMU has no monitor"));
        let listener = UnixListener::bind(monitor.socket()).unwrap();
        let qemu = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answers =
                "{\"QMP\": {}}\n{\"return\": {}}\n{\"event\": \"RESET\"}\n{\"return\": \"RIP=1\\r\\nXMM00=0\\r\\n\"}\n";
            stream.write_all(answers.as_bytes()).await.unwrap();
            let mut asked = String::new();
            tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut asked).await.unwrap();
            asked
        });
        assert_eq!(monitor.registers().await, "  RIP=1\n");
        assert!(qemu.await.unwrap().contains("info registers -a"));
    }
}
