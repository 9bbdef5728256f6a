//! A stranger's program: a project of its own in an empty directory, with wrenn-core as a dependency.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::packed::Package;
use crate::shell;

/// How the program comes by wrenn-core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The published packages, in a directory that `cargo vendor` has made, without a network.
    Vendored,
    /// This repository's directory.
    Path,
    /// This repository as it is committed.
    Git,
}

/// Builds and runs it. Each way is built anew, which takes minutes.
pub(super) fn run(way: Way, packages: &[Package]) -> anyhow::Result<()> {
    println!("package: a program in an empty directory, with wrenn-core by {way:?}");
    let directory = tempfile::Builder::new().prefix("wrenn-scratch-").tempdir()?;
    let project = directory.path();
    fs::create_dir(project.join("src"))?;
    let program = shell::workspace().join("examples/hello.rs");
    fs::copy(&program, project.join("src/main.rs")).context("the example cannot be copied")?;
    let workspace = shell::workspace().display();
    let (core, patches) = match way {
        Way::Vendored => (r#""0.1.0""#.to_owned(), patches(packages)),
        Way::Path => (format!("{{ path = \"{workspace}/wrenn-core\" }}"), String::new()),
        Way::Git => (format!("{{ git = \"file://{workspace}\" }}"), String::new()),
    };
    let manifest = |patches: &str| format!("{MANIFEST}wrenn-core = {core}\n{patches}");
    fs::write(project.join("Cargo.toml"), manifest(&patches))?;
    if way == Way::Vendored {
        let config = cargo(project).args(["vendor", "--quiet"]).output()?;
        ensure!(config.status.success(), "cargo vendor: {}", String::from_utf8_lossy(&config.stderr));
        packages.iter().try_for_each(|package| vendor(package, project))?;
        fs::write(project.join("Cargo.toml"), manifest(""))?;
        fs::remove_file(project.join("Cargo.lock"))?;
        fs::create_dir(project.join(".cargo"))?;
        fs::write(project.join(".cargo/config.toml"), VENDORED)?;
    }
    let mut build = cargo(project);
    build.args(["build", "--quiet"]).args((way == Way::Vendored).then_some("--offline"));
    shell::run(&mut build)?;
    if way != Way::Vendored {
        // Everything is in cargo's home by now, and the agent has to be built from that alone.
        fs::remove_dir_all(project.join("target"))?;
        shell::run(cargo(project).args(["build", "--quiet", "--offline"]))?;
    }
    let output = Command::new(project.join("target/debug/scratch")).output()?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && said.starts_with("hello from "), "it said {said:?} and {errors:?}");
    print!("package: it said: {said}");
    Ok(())
}

/// Directs the packages, which are not published yet, to their files, so that cargo resolves what they need.
fn patches(packages: &[Package]) -> String {
    let mut text = "[patch.crates-io]\n".to_owned();
    for Package { name, directory } in packages.iter().filter(|package| package.name != "wrenn-server") {
        writeln!(text, "{name} = {{ path = \"{}\" }}", directory.display()).ok();
    }
    text
}

/// Puts a package where `cargo vendor` would, were it published.
fn vendor(package: &Package, project: &Path) -> anyhow::Result<()> {
    let to = project.join("vendor").join(package.name);
    shell::run(Command::new("cp").arg("--recursive").arg(&package.directory).arg(&to))?;
    Ok(fs::write(to.join(".cargo-checksum.json"), r#"{"files":{}}"#)?)
}

/// Cargo as a stranger starts it.
fn cargo(project: &Path) -> Command {
    let mut command = shell::cargo_command();
    command.current_dir(project).env_remove("CARGO_TARGET_DIR").env_remove("WRENN_AGENT").env_remove("RUSTFLAGS");
    command
}

const MANIFEST: &str = r#"[package]
name = "scratch"
version = "0.0.0"
edition = "2024"

[dependencies]
anyhow = "1"
tokio = { version = "1", features = ["macros", "rt-multi-thread", "time"] }
"#;
const VENDORED: &str = r#"[source.crates-io]
replace-with = "vendored-sources"
[source.vendored-sources]
directory = "vendor"
"#;
