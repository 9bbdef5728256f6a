//! A network file system is not watched unless the client says so: the kernel hears of few of its changes, or of none.
//!
//! FUSE stands for all of them, since a test can serve it.

mod support;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::Path,
    thread,
};

use connectrpc::{
    ErrorCode,
    client::{ClientConfig, HttpClient},
};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use support::Agent;
use wrenn_envd::proto::filesystem::{CreateWatcherRequest, FilesystemClient, WatchDirRequest};

#[tokio::test]
async fn a_network_mount_is_watched_on_demand_alone() {
    let mount = match FuseMount::make() {
        Ok(mount) => mount,
        Err(error) => return println!("skipped: a_network_mount_is_watched_on_demand_alone: no FUSE mount: {error}"),
    };
    let agent = Agent::start();
    let base = format!("http://{}", agent.address).parse().unwrap();
    let client = FilesystemClient::new(HttpClient::plaintext_http2_only(), ClientConfig::new(base));
    let path = mount.directory.path().to_str().unwrap().to_owned();
    let mut request = CreateWatcherRequest { path: path.clone(), ..Default::default() };
    let refused = client.create_watcher(request.clone()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
    assert!(refused.message.as_ref().unwrap().contains("set allow_network_mounts"), "{refused}");
    let stream = client.watch_dir(WatchDirRequest { path, ..Default::default() }).await;
    let refused = match stream {
        Err(error) => error,
        Ok(mut stream) => stream.message::<wrenn_envd::proto::filesystem::WatchDirResponse>().await.unwrap_err(),
    };
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
    request.allow_network_mounts = true;
    client.create_watcher(request).await.unwrap();
}

/// An empty directory that this process serves.
struct FuseMount {
    directory: tempfile::TempDir,
}

impl FuseMount {
    fn make() -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40755,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some("wrenn-test"), directory.path(), Some("fuse"), flags, Some(options.as_str()))?;
        thread::spawn(move || serve(device));
        Ok(Self { directory })
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        let _ = umount2(Path::new(self.directory.path()), MntFlags::MNT_DETACH);
    }
}

/// Answers what the kernel asks (`linux/fuse.h`), until it is unmounted.
fn serve(mut device: File) {
    let mut request = vec![0; 128 << 10];
    while let Ok(length) = device.read(&mut request) {
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().expect("four bytes"));
        let opcode = word(4);
        let (error, body) = match opcode {
            GETATTR => (0, attributes()),
            STATFS => (0, vec![0; 80]),
            // Version 7.31, and none of what may be agreed upon.
            INIT => (0, [7, 31].into_iter().chain([0; 14]).flat_map(u32::to_le_bytes).collect()),
            FORGET | BATCH_FORGET => continue,
            _ => (-(Errno::ENOSYS as i32), Vec::new()),
        };
        assert!(length >= 40, "a header has 40 bytes");
        let mut answer = u32::try_from(16 + body.len()).expect("short").to_le_bytes().to_vec();
        answer.extend(error.to_le_bytes());
        answer.extend(&request[8..16]);
        answer.extend(body);
        if device.write_all(&answer).is_err() {
            return;
        }
    }
}

/// Of a directory that is everybody's to read; valid for no time.
fn attributes() -> Vec<u8> {
    let mut body = vec![0; 104];
    body[16] = 1; // The inode's number.
    body[76..80].copy_from_slice(&0o40_755_u32.to_le_bytes());
    body[80] = 2; // Links.
    body
}

const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const STATFS: u32 = 17;
const INIT: u32 = 26;
const BATCH_FORGET: u32 = 42;
