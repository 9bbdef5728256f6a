//! `cargo xtask package`: the crates as they are published, the agent in them, and a stranger's program that uses them.
//!
//! ```text
//! agent::here | agent::reproduced -> agent::put -> cargo package -> unpack -> scratch: vendored | path | git
//! ```

mod agent;
mod packed;
mod scratch;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::{setup, shell};
use packed::Package;
use scratch::Way;

/// Packs the crates, and tries them: from a vendored directory, and with `every_way` also as paths and from git, with an agent that is
/// the same wherever it is built.
pub(crate) async fn run(every_way: bool) -> anyhow::Result<()> {
    let agent = if every_way { agent::reproduced()? } else { agent::here()? };
    let packages = pack(&agent)?;
    setup::run().await?;
    let ways: &[Way] = if every_way { &[Way::Vendored, Way::Path, Way::Git] } else { &[Way::Vendored] };
    ways.iter().try_for_each(|&way| scratch::run(way, &packages))?;
    println!("package: the crates are in {}", shell::target().join("package").display());
    Ok(())
}

/// Packs each crate with this agent in wrenn-core, and unpacks it.
fn pack(agent: &[u8]) -> anyhow::Result<Vec<Package>> {
    let _packed = agent::put(agent)?;
    let mut command = shell::cargo_command();
    // They are built by the program that uses them, and the agent is in no repository.
    command.args(["package", "--quiet", "--no-verify", "--allow-dirty"]);
    shell::run(command.args(PACKAGES.iter().flat_map(|name| ["--package", name])))?;
    let unpacked = shell::target().join("package/unpacked");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    fs::create_dir_all(&unpacked)?;
    let packages = PACKAGES.iter().map(|&name| unpack(name, &unpacked)).collect::<anyhow::Result<Vec<_>>>()?;
    let core = packages.iter().find(|package| package.name == "wrenn-core").context("wrenn-core is not packed")?;
    ensure!(agent::of(core)? == agent, "the agent in the package is not the one that was built");
    Ok(packages)
}

fn unpack(name: &'static str, directory: &Path) -> anyhow::Result<Package> {
    let stem = format!("{name}-{}", env!("CARGO_PKG_VERSION"));
    let packed = shell::target().join("package").join(format!("{stem}.crate"));
    let bytes = packed.metadata().with_context(|| format!("cargo made no {}", packed.display()))?.len();
    ensure!(bytes < PACKAGE_BYTES_MAX, "{} has {bytes} bytes, and crates.io takes 10 MB", packed.display());
    println!("package: {stem}: {} KiB", bytes / 1024);
    shell::run(Command::new("tar").arg("-xzf").arg(&packed).arg("-C").arg(directory))?;
    Ok(Package { name, directory: directory.join(stem) })
}

/// What is published. The order is that of their dependencies.
const PACKAGES: [&str; 5] = ["wrenn-snapshot", "wrenn-net", "wrenn-envd", "wrenn-core", "wrenn-server"];
/// crates.io refuses larger ones.
const PACKAGE_BYTES_MAX: u64 = 10_000_000;
