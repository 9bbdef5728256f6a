//! Nothing is lost across pauses: what users of any snapshotting sandbox fear most.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::run;
use wrenn_core::{Error, Host, Paging, Sandbox, SandboxFilter, SandboxId, SandboxState};

/// A process with data in memory, a tmpfs file, an open file and a listening socket. It answers each connection with all
/// of them, and a count that only its memory has.
const SERVER: &str = r"
import hashlib, os, socket
data = bytearray(os.urandom(8 << 20))
note = open('/dev/shm/note', 'w+b'); note.write(b'in tmpfs'); note.flush()
log = open('/home/user/log', 'a+')
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', 7000)); s.listen()
n = 0
print('ready', flush=True)
while True:
    c, _ = s.accept()
    n += 1
    log.write(f'{n}\n'); log.flush(); note.seek(0)
    c.sendall(f'{n} {hashlib.sha256(data).hexdigest()} {note.read().decode()} {os.getpid()}\n'.encode())
    c.close()
";

const ASK: &str =
    r#"python3 -c "import socket; print(socket.create_connection(('127.0.0.1', 7000), 5).recv(999).decode(), end='')""#;

async fn start_server(sandbox: &wrenn_core::Sandbox) {
    sandbox.write_file("/home/user/server.py", SERVER).await.unwrap();
    let line = "nohup python3 server.py > server.out 2>&1 & for i in $(seq 100); do grep -q ready server.out && exit; sleep 0.1; done; exit 1";
    run(sandbox, line).await;
}

/// The server's answer without its count.
fn identity(answer: &str) -> String {
    answer.split_once(' ').unwrap().1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_goes_on_after_pause_and_resume() {
    vm_test_or_return!();
    let (_host, sandbox) = common::sandbox().await;
    start_server(&sandbox).await;
    let before = run(&sandbox, ASK).await;
    assert!(before.starts_with("1 "), "{before}");
    let mut sandbox = sandbox;
    for round in 2..5 {
        sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
        let after = run(&sandbox, ASK).await;
        assert!(after.starts_with(&format!("{round} ")), "{after}");
        assert_eq!(identity(&after), identity(&before));
    }
    assert_eq!(run(&sandbox, "cat log").await, "1\n2\n3\n4");
    sandbox.kill().await.unwrap();
}

/// Not a test by itself: the program that `a_paused_sandbox_survives_the_program_that_made_it` starts and sees end.
#[tokio::test(flavor = "multi_thread")]
async fn program_that_pauses_and_ends() {
    let Some(report) = std::env::var_os("WRENN_TEST_REPORT") else { return };
    let (_host, sandbox) = common::sandbox().await;
    start_server(&sandbox).await;
    let answer = run(&sandbox, ASK).await;
    let paused = sandbox.pause().await.unwrap();
    std::fs::write(report, format!("{}\n{answer}\n", paused.id())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_survives_the_program_that_made_it() {
    vm_test_or_return!();
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report");
    let status = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program_that_pauses_and_ends", "--nocapture"])
        .env("WRENN_TEST_REPORT", &report)
        .status()
        .await
        .unwrap();
    assert!(status.success());
    let report = std::fs::read_to_string(report).unwrap();
    let (id, before) = report.trim_end().split_once('\n').unwrap();
    let id: SandboxId = id.parse().unwrap();

    let host = common::host().await;
    let listed = host.sandboxes(&SandboxFilter::new()).await.unwrap().into_iter().find(|info| info.id == id).unwrap();
    assert_eq!(listed.state, SandboxState::Paused);
    let sandbox = host.paused(&id).await.unwrap().resume().await.unwrap();
    let after = run(&sandbox, ASK).await;
    assert!(after.starts_with("2 "), "{after}");
    assert_eq!(identity(&after), identity(before));
    sandbox.kill().await.unwrap();
    assert!(matches!(host.paused(&id).await, Err(Error::NotFound { .. })));
}

/// Each round writes, zeroes, truncates and rewrites; the model is what `sha256sum` said before the pause.
const CHURN: &str = r#"
set -e
round=$1
mkdir -p /home/user/data; cd /home/user/data
head -c 3000000 /dev/urandom > contiguous-$round
python3 - "$round" <<'PY'
import os, sys
round = int(sys.argv[1])
with open('scattered', 'r+b' if os.path.exists('scattered') else 'w+b') as f:
    for i in range(64):
        f.seek((i * 37 + round * 11) % 512 * 4096 + 123)
        f.write(os.urandom(700))
with open('zeroed', 'r+b' if os.path.exists('zeroed') else 'w+b') as f:
    f.write(os.urandom(1 << 20) if round % 2 else bytes(1 << 20))
with open('truncated', 'w+b' if round % 3 == 0 else 'a+b') as f:
    f.write(os.urandom(200_000)); f.truncate(100_000 + round)
with open('/dev/shm/tmpfs', 'wb') as f:
    f.write(bytes(500_000) if round % 2 else os.urandom(500_000))
PY
sync
"#;
const HASH: &str = "cd /home/user/data && sha256sum * /dev/shm/tmpfs";

#[tokio::test(flavor = "multi_thread")]
async fn ten_cycles_keep_every_byte() {
    vm_test_or_return!();
    let (_host, mut sandbox) = common::sandbox().await;
    start_server(&sandbox).await;
    let memory = identity(&run(&sandbox, ASK).await);
    sandbox.write_file("/home/user/churn.sh", CHURN).await.unwrap();
    for round in 1..=10 {
        run(&sandbox, &format!("bash churn.sh {round}")).await;
        let model = run(&sandbox, HASH).await;
        sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
        assert_eq!(run(&sandbox, HASH).await, model, "round {round}, from the page cache");
        run(&sandbox, "echo 3 | sudo tee /proc/sys/vm/drop_caches > /dev/null").await;
        assert_eq!(run(&sandbox, HASH).await, model, "round {round}, from the drive");
        assert_eq!(identity(&run(&sandbox, ASK).await), memory, "round {round}");
    }
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_stores_what_was_written_and_a_resume_reads_what_is_touched() {
    vm_test_or_return!();
    let (_host, sandbox) = common::sandbox().await;
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "echo up").await, "up");
    let report = sandbox.restore_report().await.unwrap().memory;
    assert!(report.pages > 0 && report.bytes > 0, "{report:?}");
    assert!(report.pages * 4 < report.total_pages, "{report:?}");
    run(&sandbox, "head -c 1048576 /dev/urandom > /dev/shm/written").await;
    let paused = sandbox.pause().await.unwrap();
    println!("{report:?}; the second pause stored {} KiB", paused.stored_bytes() / 1024);
    assert!(paused.stored_bytes() > 1 << 20, "{}", paused.stored_bytes());
    assert!(paused.stored_bytes() < 8 << 20, "{}", paused.stored_bytes());
    paused.delete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_pages_cannot_be_served_they_are_copied_and_compared() {
    vm_test_or_return!();
    let host = Host::builder().paging(Paging::Eager).open().await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    start_server(&sandbox).await;
    let before = identity(&run(&sandbox, ASK).await);
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    let report = sandbox.restore_report().await.unwrap();
    assert_eq!((report.paging, report.memory.faults), (Paging::Eager, 0), "{report:?}");
    assert_eq!(identity(&run(&sandbox, ASK).await), before);
    run(&sandbox, "head -c 1048576 /dev/urandom > /dev/shm/written").await;
    let sum = run(&sandbox, "md5sum < /dev/shm/written").await;
    let paused = sandbox.pause().await.unwrap();
    assert!((1 << 20..8 << 20).contains(&paused.stored_bytes()), "{}", paused.stored_bytes());
    // The next host serves pages, and finds the same memory.
    let lazily = Host::builder().paging(Paging::Lazy).open().await.unwrap();
    let sandbox = lazily.paused(paused.id()).await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "md5sum < /dev/shm/written").await, sum);
    assert_eq!(identity(&run(&sandbox, ASK).await), before);
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_is_older_than_a_crash_is_what_a_crash_falls_back_to() {
    vm_test_or_return!();
    let (host, sandbox) = common::sandbox().await;
    run(&sandbox, "echo old > state").await;
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    let id = sandbox.id().clone();
    run(&sandbox, "echo new > state").await;
    let vmm = i32::try_from(sandbox.vmm_pid().await.unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(vmm), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(sandbox.exec("true").await.is_err());
    let again: Host = host.clone();
    let sandbox = again.paused(&id).await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "cat state").await, "old");
    sandbox.kill().await.unwrap();
}
