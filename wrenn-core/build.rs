//! Puts the guest's agent into the library, as `OUT_DIR/agent`, and beside it the SHA-256 of one that is not packed.
//!
//! ```text
//! WRENN_AGENT=/path/to/wrenn-envd   taken as it is
//! WRENN_AGENT=none                  nothing: images then need `ImageBuilder::agent`
//! ../wrenn-envd                     built, where the package is used from its sources (a path, a git repository)
//! agent/wrenn-envd.zst              in the published package
//! ```
#![expect(clippy::print_stderr, reason = "cargo shows it where the script fails")]

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use sha2::{Digest as _, Sha256};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wrenn-core's agent for guests cannot be had: {error}\n\n{REMEDY}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed=build.rs");
    let package = path_of("CARGO_MANIFEST_DIR")?;
    let out = path_of("OUT_DIR")?;
    let packaged = package.join(PACKAGED);
    println!("cargo::rerun-if-changed={}", packaged.display());
    let agent = match env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        Some(value) if value == "none" => None,
        Some(path) => {
            println!("cargo::rerun-if-changed={}", Path::new(&path).display());
            Some(PathBuf::from(path))
        }
        None => match sources(&package) {
            Some(workspace) => Some(build(&workspace, &out)?),
            None => Some(packaged),
        },
    };
    // A copy, so that the library does not depend on a place that another build may write.
    let bytes =
        agent.map(|path| fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))).transpose()?;
    let bytes = bytes.unwrap_or_default();
    // One that is packed is identified by what comes out of it.
    let is_plain = !bytes.is_empty() && !bytes.starts_with(&ZSTD_MAGIC);
    let digest: String = if is_plain { hex(&Sha256::digest(&bytes)) } else { String::new() };
    fs::write(out.join("agent"), bytes)?;
    fs::write(out.join("agent.sha256"), digest)?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The repository that the package is in, if it is. A directory of vendored packages has wrenn-envd beside it too.
fn sources(package: &Path) -> Option<PathBuf> {
    let workspace = package.parent()?.canonicalize().ok()?;
    let needed = ["wrenn-envd/Cargo.toml", "Cargo.toml", "Cargo.lock"];
    needed.iter().all(|needed| workspace.join(needed).exists()).then_some(workspace)
}

/// Builds the agent from its sources. Returns the binary's path.
fn build(workspace: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    for watched in ["wrenn-envd/Cargo.toml", "wrenn-envd/build.rs", "wrenn-envd/proto", "wrenn-envd/src"] {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }
    for watched in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }
    let target = shared_target(out).join("wrenn-agent");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--package", "wrenn-envd", "--bin", "wrenn-envd"]);
    cargo.args(["--features", "agent", "--profile", "agent", "--target", TARGET]);
    cargo.arg("--target-dir").arg(&target).current_dir(workspace);
    // What the outer build was told is not meant for this one: its target, its flags, its wrapper of the compiler.
    for (name, _) in env::vars_os().filter(|(name, _)| is_of_the_outer_build(&name.to_string_lossy())) {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rust_flags(workspace, &target)?);
    let status = cargo.stdin(Stdio::null()).status().map_err(|error| format!("cargo cannot be started: {error}"))?;
    if !status.success() {
        return Err(format!("building it from {} failed ({status}), see above", workspace.display()).into());
    }
    Ok(target.join(TARGET).join("agent/wrenn-envd"))
}

/// Flags for a static binary that is the same wherever it is built.
fn rust_flags(workspace: &Path, target: &Path) -> Result<OsString, Box<dyn Error>> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "sysroot"]).stderr(Stdio::inherit()).output()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    // The last that fits is taken, and the target directory is often within the workspace.
    let places = [
        (Some(sysroot.join("lib/rustlib/src/rust")), "/rust"),
        (home, "/cargo"),
        (Some(workspace.to_owned()), "/wrenn"),
        (Some(target.to_owned()), "/target"),
    ];
    let mut flags = OsString::from("-Ctarget-feature=+crt-static");
    for (from, to) in places {
        let Some(from) = from else { continue };
        flags.push("\x1f--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    Ok(flags)
}

/// The target directory that `out` is in, which every profile has in common; `out` itself where cargo's mark is not found.
fn shared_target(out: &Path) -> &Path {
    let is_marked = |directory: &&Path| directory.join("CACHEDIR.TAG").exists();
    let Some(nearest) = out.ancestors().find(is_marked) else { return out };
    // With `--target` it has a directory of that name in it, which is marked too.
    let is_of_a_target = nearest.file_name() == env::var_os("TARGET").as_deref();
    nearest.parent().filter(is_marked).filter(|_| is_of_a_target).unwrap_or(nearest)
}

fn is_of_the_outer_build(name: &str) -> bool {
    let kept = ["CARGO_HOME", "CARGO_MAKEFLAGS"].contains(&name)
        || ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"].iter().any(|start| name.starts_with(start));
    let told = ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTDOC", "DEP_"].iter().any(|start| name.starts_with(start))
        || ["TARGET", "HOST", "PROFILE", "OPT_LEVEL", "DEBUG", "OUT_DIR", "NUM_JOBS"].contains(&name);
    told && !kept
}

fn path_of(variable: &str) -> Result<PathBuf, Box<dyn Error>> {
    env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("cargo has not set {variable}").into())
}

/// RFC 8878, 3.1.1.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const VARIABLE: &str = "WRENN_AGENT";
const PACKAGED: &str = "agent/wrenn-envd.zst";
/// Guests are x86-64 wherever this is compiled.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const REMEDY: &str = "\
Use wrenn-core as it is published, which has the agent in it; or install what building it takes
(`rustup target add x86_64-unknown-linux-gnu`, and the network or a filled cargo home); or set WRENN_AGENT to a binary
that was built elsewhere, or to `none` where no image is to be built.";
