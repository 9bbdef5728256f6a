//! What the tests on real virtual machines share.
#![allow(dead_code, clippy::print_stdout, clippy::unwrap_used, reason = "tests; each file uses a part")]

pub(crate) mod lacking;
pub(crate) mod mount;

use std::io::Write as _;
use std::path::PathBuf;

use tempfile::TempDir;
use wrenn_core::{Host, HostBuilder, Sandbox};

/// Why this machine cannot run the test, if it cannot. Printed by name, so that the runner counts it.
fn obstacle() -> Option<String> {
    if std::env::var("WRENN_TEST_VM").as_deref() == Ok("0") {
        return Some("WRENN_TEST_VM=0 leaves out virtual machines".to_owned());
    }
    if !nix::unistd::Uid::effective().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    let image = wrenn_core::default_data_dir().join("images/base/image.json");
    (!image.exists()).then(|| format!("there is no {}: run `cargo xtask setup`", image.display()))
}

/// Whether the test can run; says so if not.
pub(crate) fn can_run(test: &str) -> bool {
    let obstacle = obstacle();
    if let Some(reason) = &obstacle {
        skip(test, reason);
    }
    obstacle.is_none()
}

/// Says that a test, or a part of it, does not run.
pub(crate) fn skip(test: &str, reason: &dyn std::fmt::Display) {
    // Past the runner, which keeps to itself what a test that passes prints.
    writeln!(std::io::stderr(), "skipped: {test}: {reason}").expect("standard error is open");
}

/// Whether the test is run by root and finds QEMU; says so if not.
pub(crate) fn has_root_and_qemu(test: &str) -> bool {
    let qemu = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("qemu-system-x86_64").is_file()));
    let obstacle = match (nix::unistd::Uid::effective().is_root(), qemu) {
        (true, true) => return true,
        (false, _) => "it makes namespaces, as root",
        (true, false) => "qemu-system-x86_64 is not installed",
    };
    skip(test, &obstacle);
    false
}

/// The name of the calling test.
#[macro_export]
macro_rules! vm_test_or_return {
    () => {
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        if !common::can_run(&name) {
            return;
        }
    };
}

/// How long something may take here that may take `time` where nothing slows a guest: `WRENN_TIMEOUT_FACTOR` times as long, as
/// wrenn itself has it.
pub(crate) fn patient(time: std::time::Duration) -> std::time::Duration {
    let factor = std::env::var("WRENN_TIMEOUT_FACTOR").ok().and_then(|factor| factor.parse().ok());
    time.mul_f64(factor.unwrap_or(1.0))
}

/// The host that every test shares: its template is booted once.
pub(crate) async fn host() -> Host {
    Host::builder().open().await.unwrap()
}

pub(crate) async fn sandbox() -> (Host, Sandbox) {
    let host = host().await;
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    (host, sandbox)
}

/// Runs a line that has to succeed, and returns what it printed.
pub(crate) async fn run(sandbox: &Sandbox, line: &str) -> String {
    let output = sandbox.exec(line).await.unwrap();
    assert!(output.status.success(), "{line}: {}\n{}", output.status, output.stderr_utf8());
    output.stdout_utf8().trim_end().to_owned()
}

/// What a web server says to the guest; else curl's exit status.
pub(crate) async fn get(sandbox: &Sandbox, url: &str) -> Result<String, i32> {
    let output = sandbox.exec(&format!("curl -sS --max-time 20 {url}")).await.unwrap();
    match output.status.code() {
        Some(0) => Ok(output.stdout_utf8()),
        code => Err(code.unwrap()),
    }
}

/// A data directory of a test's own, with the shared one's images.
pub(crate) fn own_data_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("wrenn-test-").tempdir().unwrap();
    link_images(dir.path());
    dir
}

pub(crate) fn link_images(dir: &std::path::Path) {
    std::os::unix::fs::symlink(wrenn_core::default_data_dir().join("images"), dir.join("images")).unwrap();
}

pub(crate) fn own_host(dir: &TempDir) -> HostBuilder {
    Host::builder().data_dir(dir.path())
}

/// The VMMs that this process started and that are still there.
pub(crate) fn own_vmms() -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let parent = tail.split_whitespace().nth(1).and_then(|field| field.parse::<u32>().ok());
        if parent == Some(std::process::id()) && (head.contains("(qemu") || head.contains("(firecracker")) {
            found.push(pid);
        }
    }
    found
}

/// Whether a process is there and not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, tail)| !tail.trim_start().starts_with(['Z', 'X']))
}

/// Every file below a directory, without what `images` leads to and the locks, which are empty.
pub(crate) fn files(dir: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if entry.file_name() == "images" || entry.file_name() == "locks" {
            continue;
        }
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
