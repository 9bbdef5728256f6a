//! A file of 1 GiB, to a guest and back.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use common::sandbox;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};
use wrenn_core::Sandbox;

/// Bytes that no hole and no compression makes less of, and that are not kept: what was read of them is hashed.
struct Noise {
    state: u64,
    left: u64,
    hash: Sha256,
}

impl Noise {
    fn new(bytes: u64) -> Self {
        Self { state: 1, left: bytes, hash: Sha256::new() }
    }
}

impl AsyncRead for Noise {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut piece = [0; 8192];
        let len = usize::try_from(self.left.min(8192)).unwrap().min(buf.remaining());
        for word in piece.chunks_mut(8) {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&self.state.to_le_bytes());
        }
        self.hash.update(&piece[..len]);
        self.left -= len as u64;
        buf.put_slice(&piece[..len]);
        Poll::Ready(Ok(()))
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The most that the agent has had in memory since it was last asked, in KiB.
async fn agent_peak_kib(sandbox: &Sandbox) -> u64 {
    let line = "awk '/VmHWM/ { print $2 }' /proc/1/status; echo 5 >/proc/1/clear_refs";
    let output = sandbox.command("sh").args(["-c", line]).user("root").output().await.unwrap();
    output.stdout_utf8().trim().parse().unwrap()
}

/// The same of this program, which is why the test is alone in it: a guest's memory that another looks into counts too.
fn own_peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim_end_matches("kB").trim().parse().unwrap()
}

/// 1 GiB, or as many MiB as `WRENN_TEST_FILE_MIB` says, for a machine in a hurry.
fn big_file_mib() -> u64 {
    std::env::var("WRENN_TEST_FILE_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_file_goes_each_way_in_constant_memory() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let mib = big_file_mib();
    let (files, path) = (sandbox.files(), "/home/user/big");
    agent_peak_kib(&sandbox).await;
    own_peak_kib();
    let (idle, own) = (agent_peak_kib(&sandbox).await, own_peak_kib());

    let mut noise = Noise::new(mib << 20);
    let began = Instant::now();
    assert_eq!(files.write_from(path, &mut noise).await.unwrap(), mib << 20);
    let (wrote, sent) = (began.elapsed(), hex(noise.hash));
    let writing = agent_peak_kib(&sandbox).await;

    let (mut reader, mut hash, began) = (files.open(path).await.unwrap(), Sha256::new(), Instant::now());
    let (mut buffer, mut read_bytes) = (vec![0; 64 << 10], 0);
    loop {
        let len = reader.read(&mut buffer).await.unwrap();
        if len == 0 {
            break;
        }
        hash.update(&buffer[..len]);
        read_bytes += len as u64;
    }
    let (read, reading, own_after) = (began.elapsed(), agent_peak_kib(&sandbox).await, own_peak_kib());
    println!(
        "measured: {mib} MiB written in {wrote:?} and read in {read:?}; the agent had {idle} KiB, at most {writing} KiB \
         while writing and {reading} KiB while reading; this program had {own} KiB, and then at most {own_after} KiB"
    );
    assert_eq!(read_bytes, mib << 20);
    assert_eq!(hex(hash), sent);
    assert!(writing < idle + (8 << 10) && reading < idle + (8 << 10), "the agent's memory grows with the file");
    assert!(own_after < own + (16 << 10), "this program's memory grows with the file");
    sandbox.kill().await.unwrap();
}
