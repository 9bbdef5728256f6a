//! The agent for the published package: the same bytes wherever it is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use super::packed::Package;
use crate::shell;

/// Builds the agent, and returns its bytes.
pub(super) fn here() -> anyhow::Result<Vec<u8>> {
    println!("package: building the agent");
    built(shell::workspace(), &shell::target())
}

/// Builds the agent here, and from a copy of the sources in another place. Returns its bytes, which both have.
pub(super) fn reproduced() -> anyhow::Result<Vec<u8>> {
    let here = here()?;
    println!("package: building the agent in another place");
    let copy = copy_of_sources()?;
    let there = built(copy.path(), &shell::target().join("package/elsewhere"))?;
    ensure!(here == there, "two builds of the agent differ: something in it depends on where it is built");
    println!("package: the agent has the same {} KiB from both", here.len() / 1024);
    Ok(here)
}

/// The agent that `build.rs` of wrenn-core builds from the sources in `workspace`.
fn built(workspace: &Path, target: &Path) -> anyhow::Result<Vec<u8>> {
    let mut cargo = shell::cargo_command();
    cargo.args(["check", "--quiet", "--locked", "--package", "wrenn-core"]).current_dir(workspace);
    // The sources, and not what was left in the package's place.
    cargo.env_remove("WRENN_AGENT").env("CARGO_TARGET_DIR", target);
    shell::run(&mut cargo)?;
    let agent = target.join("wrenn-agent").join(shell::TARGET).join("agent/wrenn-envd");
    fs::read(&agent).with_context(|| format!("wrenn-core's build has left no {}", agent.display()))
}

/// Every file that the repository knows, in a directory that is removed at the end.
fn copy_of_sources() -> anyhow::Result<TempDir> {
    let copy = tempfile::Builder::new().prefix("wrenn-elsewhere-").tempdir()?;
    let list = Command::new("git").args(["ls-files", "-z"]).current_dir(shell::workspace()).output()?;
    ensure!(list.status.success(), "git cannot list the sources: {}", String::from_utf8_lossy(&list.stderr));
    let list = String::from_utf8(list.stdout)?;
    for file in list.split_terminator('\0') {
        let (from, to) = (shell::workspace().join(file), copy.path().join(file));
        fs::create_dir_all(to.parent().unwrap_or(&to))?;
        // Links among the sources lead to what is copied too, and a file may be removed and not committed yet.
        if from.exists() {
            fs::copy(&from, &to).with_context(|| format!("{file} cannot be copied"))?;
        }
    }
    Ok(copy)
}

/// Compresses the agent into wrenn-core's directory, where cargo packs it. It is removed on drop.
pub(super) fn put(agent: &[u8]) -> anyhow::Result<Packed> {
    let path = shell::workspace().join("wrenn-core").join(PLACE);
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    let packed = Packed(path);
    fs::write(&packed.0, zstd::bulk::compress(agent, LEVEL)?)?;
    Ok(packed)
}

/// The compressed agent.
#[derive(Debug)]
pub(super) struct Packed(PathBuf);

impl Drop for Packed {
    fn drop(&mut self) {
        // The next packing replaces it, and no build from sources takes it.
        fs::remove_file(&self.0).ok();
    }
}

/// The agent in an unpacked wrenn-core.
pub(super) fn of(core: &Package) -> anyhow::Result<Vec<u8>> {
    let path = core.directory.join(PLACE);
    let packed = fs::read(&path).with_context(|| format!("the package has no {PLACE}"))?;
    Ok(zstd::bulk::decompress(&packed, BYTES_MAX)?)
}

const PLACE: &str = "agent/wrenn-envd.zst";
/// The highest: it is compressed once.
const LEVEL: i32 = 22;
const BYTES_MAX: usize = 64 << 20;
