//! What ten sandboxes of one image keep of its base in the host's page cache, beside one.
#![expect(clippy::cast_precision_loss, reason = "for display")]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use wrenn_core::image::Image;
use wrenn_core::{Host, Sandbox};

mod support;
use support::{Goal, report, skipped};

const SANDBOXES: usize = 10;
/// What each sandbox reads of the base.
const READ: &str = "find /usr/bin /usr/lib/python3* -xdev -type f -exec cat {} + > /dev/null";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if Command::new("fincore").arg("--version").output().is_err() {
        skipped("image_memory", &"there is no `fincore`: run `apt-get install util-linux-extra`");
        return Ok(());
    }
    // A base of its own, which nobody else reads.
    let data = tempfile::tempdir()?;
    let shared = wrenn_core::default_data_dir();
    std::os::unix::fs::symlink(shared.join("kernels"), data.path().join("kernels"))?;
    let (from, to) = (shared.join("images/base"), data.path().join("images/base"));
    fs::create_dir_all(&to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        let copied = Command::new("cp").arg("--sparse=always").arg(file.path()).arg(&to).status()?;
        ensure!(copied.success(), "{} was not copied", file.path().display());
    }
    let host = Host::builder().data_dir(data.path()).open().await?;
    // The boot reads other parts of the base.
    Sandbox::create(&host, "base").await?.kill().await?;
    let base = Image::open(data.path(), "base")?.base();
    let one = cached_by(&host, &base, 1).await?;
    let ten = cached_by(&host, &base, SANDBOXES).await?;
    report("image_memory", "MiB", mib(ten), mib(one), Goal::AtMost(1.1));
    Ok(())
}

/// The bytes of the base that are in the page cache once so many sandboxes have read it.
async fn cached_by(host: &Host, base: &Path, sandboxes: usize) -> anyhow::Result<u64> {
    let file = File::open(base)?;
    file.sync_all()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let before = resident(base)?;
    let mut running = Vec::new();
    for _ in 0..sandboxes {
        let sandbox = Sandbox::create(host, "base").await?;
        let read = sandbox.exec(READ).await?;
        ensure!(read.status.success(), "{}", read.stderr_utf8());
        running.push(sandbox);
    }
    let after = resident(base)?;
    for sandbox in running {
        sandbox.kill().await?;
    }
    ensure!(after > before, "the VMM reads the base past the page cache");
    Ok(after)
}

fn resident(path: &Path) -> anyhow::Result<u64> {
    let output = Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(path).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
