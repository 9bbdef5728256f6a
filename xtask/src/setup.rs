//! `cargo xtask setup`: a bare machine made ready, with a line for each thing that is done.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use wrenn_core::image::{Image, requirements};

use crate::shell;

pub(crate) async fn run() -> anyhow::Result<()> {
    let started = Instant::now();
    install_packages()?;
    let agent = build_agent()?;
    let data_dir = wrenn_core::default_data_dir();
    println!("setup: image `base` in {}", data_dir.display());
    let builder = Image::builder("base").agent(&agent);
    let build = builder.build(&data_dir, |step| println!("setup:   {step}"));
    let image = build.await.context("the image `base` could not be built")?;
    println!("setup: ready in {:.1} s (kernel {})", started.elapsed().as_secs_f64(), image.kernel_release());
    Ok(())
}

/// Installs what is missing, as root; tells others what to run.
fn install_packages() -> anyhow::Result<()> {
    let mut packages: Vec<&str> =
        requirements().iter().filter(|needed| needed.found.is_none()).map(|needed| needed.package).collect();
    if !TEST_PROGRAMS.iter().all(|(program, _)| on_path(program)) {
        packages.extend(TEST_PROGRAMS.map(|(_, package)| package));
    }
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        println!("setup: every package is here");
        return Ok(());
    }
    let command = format!("apt-get install --yes --no-install-recommends {}", packages.join(" "));
    if !nix::unistd::Uid::effective().is_root() {
        bail!(
            "packages are missing; install them as root and run this again:\n    sudo apt-get update && sudo {command}"
        );
    }
    println!("setup: installing {}", packages.join(", "));
    apt(&["update", "--quiet=2"])?;
    let mut arguments = vec!["install", "--yes", "--quiet=2", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

/// What the tests alone want, and the package that has it.
const TEST_PROGRAMS: [(&str, &str); 1] = [("mkfs.xfs", "xfsprogs")];

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
    let status = status.context("apt-get could not be started: this needs Debian or Ubuntu")?;
    ensure!(status.success(), "`apt-get {}` failed ({status})", arguments.join(" "));
    Ok(())
}

/// Builds the agent as one static binary.
fn build_agent() -> anyhow::Result<PathBuf> {
    println!("setup: building the agent");
    let arguments = ["build", "--quiet", "--package", "wrenn-envd", "--features", "agent", "--profile", "agent"];
    let mut arguments = arguments.to_vec();
    arguments.extend(["--target", shell::TARGET]);
    shell::cargo_with(&arguments, &[("RUSTFLAGS", shell::STATIC)])?;
    Ok(shell::target().join(shell::TARGET).join("agent/wrenn-envd"))
}
