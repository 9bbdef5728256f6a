//! The real Firecracker, stock. Skipped by name where there is none, or no KVM that serves it; `cargo xtask lab` has one.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::run;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use sha2::{Digest as _, Sha512};
use tokio::sync::{Mutex, MutexGuard};
use wrenn_core::{Confinement, Driver, Error, Host, HostBuilder, Paging, PausedSandbox, Sandbox, SandboxId, Step};

/// The tests count processes, so they run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// The shared host, or nothing and the name of the test that is skipped.
async fn firecracker() -> Option<(Host, MutexGuard<'static, ()>)> {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    if !common::can_run(&test) {
        return None;
    }
    let choice = Host::doctor().await.choice;
    if choice.as_ref().is_ok_and(|choice| choice.driver == Driver::Firecracker) {
        return Some((with(|host| host).await, ONE_AT_A_TIME.lock().await));
    }
    let why = choice.map_or_else(|why| why, |choice| choice.reason);
    println!("skipped: {test}: {why}; `cargo xtask lab` runs it");
    None
}

async fn with(options: impl FnOnce(HostBuilder) -> HostBuilder) -> Host {
    options(Host::builder().driver(Driver::Firecracker)).open().await.unwrap()
}

macro_rules! firecracker_or_return {
    () => {
        match firecracker().await {
            Some(found) => found,
            None => return,
        }
    };
}

/// Files that a lost or stale page would change, and one in memory alone.
const WRITE: &str = "head -c 3M /dev/urandom > contiguous; \
    for i in $(seq 64); do dd if=/dev/urandom of=scattered bs=4k count=1 seek=$((i * 37)) conv=notrunc status=none; done; \
    head -c 2M /dev/urandom > /dev/shm/memory";
const CHANGE: &str = "dd if=/dev/zero of=contiguous bs=64k count=4 seek=$((RANDOM % 40)) conv=notrunc status=none; \
    dd if=/dev/zero of=/dev/shm/memory bs=64k count=2 seek=$((RANDOM % 30)) conv=notrunc status=none; \
    dd if=/dev/urandom of=scattered bs=4k count=1 seek=$((RANDOM % 2000)) conv=notrunc status=none; date >> log";
const SUM: &str = "cat contiguous scattered log /dev/shm/memory | sha256sum";

#[tokio::test(flavor = "multi_thread")]
async fn ten_pauses_lose_nothing_and_each_stores_what_was_written() {
    let (host, _alone) = firecracker_or_return!();
    let mut sandbox = Sandbox::create(&host, "base").await.unwrap();
    assert_eq!(run(&sandbox, "python3 -c 'print(6 * 7)'").await, "42");
    run(&sandbox, WRITE).await;
    for round in 0..10 {
        run(&sandbox, CHANGE).await;
        let before = run(&sandbox, SUM).await;
        let paused = sandbox.pause().await.unwrap();
        // The first pause stores what the boot's template did not have; all that later ones add is a little work.
        let limit = if round == 0 { 96 } else { 24 };
        assert!(paused.stored_bytes() < limit << 20, "round {round}: {} bytes", paused.stored_bytes());
        sandbox = paused.resume().await.unwrap();
        assert_eq!(run(&sandbox, SUM).await, before, "round {round}");
        let report = sandbox.restore_report().await.unwrap();
        assert_eq!(report.paging, Paging::Lazy);
        assert!(report.memory.faults + report.memory.prefetch_bytes > 0, "{report:?}");
    }
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn four_forks_run_at_once_and_a_template_is_made_of_one() {
    let (host, _alone) = firecracker_or_return!();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, WRITE).await;
    run(&sandbox, "echo parent > who; date > log").await;
    let sum = run(&sandbox, SUM).await;
    let children: Vec<Sandbox> = sandbox.fork(4).await.unwrap().into_iter().map(Result::unwrap).collect();
    for (number, child) in children.iter().enumerate() {
        assert_eq!(run(child, SUM).await, sum);
        run(child, &format!("echo child {number} > who")).await;
    }
    for (number, child) in children.iter().enumerate() {
        assert_eq!(run(child, "cat who").await, format!("child {number}"));
    }
    assert_eq!(run(&sandbox, "cat who").await, "parent");
    let name = format!("warm-{:08x}", std::process::id());
    children[2].snapshot(&name).await.unwrap();
    for sandbox in children.into_iter().chain([sandbox]) {
        sandbox.kill().await.unwrap();
    }
    let warm = Sandbox::create(&host, &name).await.unwrap();
    assert_eq!(run(&warm, "cat who").await, "child 2");
    warm.kill().await.unwrap();
    host.remove_template(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_is_copied_at_once_is_the_same_and_is_tracked() {
    let (host, _alone) = firecracker_or_return!();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, WRITE).await;
    run(&sandbox, "date > log").await;
    let sum = run(&sandbox, SUM).await;
    let id = sandbox.pause().await.unwrap().id().clone();
    let eager = with(|host| host.paging(Paging::Eager)).await;
    let sandbox = eager.paused(&id).await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, SUM).await, sum);
    assert_eq!(sandbox.restore_report().await.unwrap().paging, Paging::Eager);
    run(&sandbox, CHANGE).await;
    let sum = run(&sandbox, SUM).await;
    let paused = sandbox.pause().await.unwrap();
    assert!(paused.stored_bytes() < 24 << 20, "{} bytes", paused.stored_bytes());
    let sandbox = paused.resume().await.unwrap();
    assert_eq!(run(&sandbox, SUM).await, sum);
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_that_map_one_file_share_it_and_are_tracked_apart() {
    let (_host, _alone) = firecracker_or_return!();
    let host = with(|host| host.paging(Paging::Mapped)).await;
    let clones = [Sandbox::create(&host, "base").await.unwrap(), Sandbox::create(&host, "base").await.unwrap()];
    let mut paused = Vec::new();
    for (number, clone) in clones.iter().enumerate() {
        assert_eq!(clone.restore_report().await.unwrap().paging, Paging::Mapped);
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", clone.vmm_pid().await.unwrap())).unwrap();
        assert!(maps.lines().any(|line| line.contains("rw-p") && line.ends_with("flat-memory")), "{maps}");
        run(clone, WRITE).await;
        run(clone, &format!("echo {number} > log")).await;
        let sum = run(clone, SUM).await;
        let pause = clone.pause().await.unwrap();
        assert!(pause.stored_bytes() < 96 << 20, "{} bytes", pause.stored_bytes());
        paused.push((pause, sum));
    }
    for (pause, sum) in paused {
        let sandbox = pause.resume().await.unwrap();
        assert_eq!(run(&sandbox, SUM).await, sum);
        sandbox.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_is_killed_at_any_step_fails_that_step_and_leaves_nothing() {
    let (host, _alone) = firecracker_or_return!();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    let paused = sandbox.pause().await.unwrap();
    for at in [Step::Run, Step::Agent] {
        let killer = with(|host| {
            host.on_step(move |step| {
                if step == at {
                    own_firecrackers().iter().for_each(|pid| kill(*pid));
                }
                Ok(())
            })
        });
        let error = killer.await.paused(paused.id()).await.unwrap().resume().await.unwrap_err();
        assert!(matches!(error, Error::VmEnded { .. }), "{at}: {error:?}");
        assert!(error.to_string().contains("signal: 9"), "{at}: {error}");
        assert_nothing_left(&host).await;
    }
    let sandbox = paused.resume().await.unwrap();
    kill(sandbox.vmm_pid().await.unwrap());
    let error = sandbox.exec("true").await.unwrap_err();
    assert!(matches!(error, Error::VmEnded { .. } | Error::InvalidState { .. }), "{error:?}");
    assert_nothing_left(&host).await;
    // The pause is none the worse for it.
    let sandbox = host.paused(paused.id()).await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "echo well").await, "well");
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_hangs_is_killed_after_a_bound() {
    let (host, _alone) = firecracker_or_return!();
    let paused = Sandbox::create(&host, "base").await.unwrap().pause().await.unwrap();
    let hanging = with(|host| {
        host.on_step(|step| {
            if step == Step::Run {
                own_firecrackers().iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
            }
            Ok(())
        })
    });
    let error = hanging.await.paused(paused.id()).await.unwrap().resume().await.unwrap_err();
    assert!(matches!(error, Error::VmEnded { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("killed, since Firecracker did not answer PATCH /vm within 30s"), "{text}");
    assert_nothing_left(&host).await;
    paused.delete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_fails_leaves_the_vm_running_and_the_next_one_has_everything() {
    let (host, _alone) = firecracker_or_return!();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, WRITE).await;
    run(&sandbox, "date > log").await;
    // Firecracker cannot write a file where a directory is.
    let room = PathBuf::from(format!("/proc/{}/cwd", sandbox.vmm_pid().await.unwrap()));
    std::fs::create_dir(room.join("state")).unwrap();
    let error = sandbox.pause().await.unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("Firecracker refused PUT /snapshot/create"), "{text}");
    assert_eq!(run(&sandbox, "echo on").await, "on");
    std::fs::remove_dir(room.join("state")).unwrap();
    run(&sandbox, CHANGE).await;
    let sum = run(&sandbox, SUM).await;
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, SUM).await, sum);
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jail_has_the_machines_own_files_and_goes_with_it() {
    let (host, _alone) = firecracker_or_return!();
    let jailed = with(|host| host.confinement(Confinement::Jailer)).await;
    let sandbox = Sandbox::create(&jailed, "base").await.unwrap();
    let pid = sandbox.vmm_pid().await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert!(field("Uid:").split_whitespace().all(|uid| uid.parse::<u32>().unwrap() >= 1_900_000_000), "{status}");
    assert_eq!((field("CapEff:").as_str(), field("NoNewPrivs:").as_str()), ("0000000000000000", "1"));
    let root = names(&PathBuf::from(format!("/proc/{pid}/root")));
    assert!(root.contains(&"drive".to_owned()) && !root.contains(&"etc".to_owned()), "{root:?}");
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::/wrenn/")).map(str::to_owned);
    run(&sandbox, WRITE).await;
    run(&sandbox, "date > log").await;
    let sum = run(&sandbox, SUM).await;
    // A jail is not part of a snapshot.
    let id = sandbox.pause().await.unwrap().id().clone();
    assert_nothing_left(&host).await;
    if let Some(name) = cgroup {
        assert!(!Path::new("/sys/fs/cgroup/wrenn").join(&name).exists(), "{name} is left");
    }
    let sandbox = host.paused(&id).await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, SUM).await, sum);
    let id = sandbox.pause().await.unwrap().id().clone();
    let sandbox = jailed.paused(&id).await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, SUM).await, sum);
    sandbox.kill().await.unwrap();
    assert_nothing_left(&host).await;
}

/// Reads the metadata service as the agent does, and calls the agent's `/init` with a lie about the guest, and then with a
/// token that the service does not vouch for.
const METADATA: &str = r#"
import json, sys, urllib.request, urllib.error
def ask(url, method, body=None, **headers):
    headers = {name.replace('_', '-'): value for name, value in headers.items()}
    try: return urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=20).read().decode()
    except urllib.error.HTTPError as error: return f'{error.code} {error.read().decode()}'
service, init = 'http://169.254.169.254/', 'http://127.0.0.1:49983/init'
print(ask(service, 'GET')[:3])
token = ask(service + 'latest/api/token', 'PUT', x_metadata_token_ttl_seconds='60')
said = json.loads(ask(service, 'GET', x_metadata_token=token, accept='application/json'))
print(*[said[name] for name in ('instanceID', 'envID', 'accessTokenHash')])
print(ask(init, 'POST', b'{"instanceID":"liar","envID":"lie"}', x_access_token=sys.argv[1]))
print(ask(init, 'POST', b'{"accessToken":"guess"}'))
"#;

/// What the service says, and that the agent goes by it.
async fn assert_described(sandbox: &Sandbox) {
    let token = sandbox.agent_token().unwrap();
    let output = sandbox.command("python3").args(["-c", METADATA, &token]).output().await.unwrap();
    let (out, err) = (output.stdout_utf8(), output.stderr_utf8());
    assert!(output.status.success(), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    let hash: String = Sha512::digest(&token).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(lines[..3], ["401", &format!("{} base {hash}", sandbox.id()), ""], "{out}");
    assert!(lines[3].starts_with("401") && lines[3].contains("vouches for"), "{out}");
    let ids = run(sandbox, "echo $E2B_SANDBOX_ID $E2B_TEMPLATE_ID").await;
    assert_eq!(ids, format!("{} base", sandbox.id()), "the service's word comes first");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_service_says_who_a_guest_is_after_every_restore_and_the_agent_goes_by_it() {
    let (host, _alone) = firecracker_or_return!();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    assert_described(&sandbox).await;
    let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
    assert_ne!(child.id(), sandbox.id());
    assert_described(&child).await;
    child.kill().await.unwrap();
    // The parent stood still for it, and is who it was.
    assert_described(&sandbox).await;
    let before = sandbox.agent_token().unwrap();
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    assert_ne!(sandbox.agent_token().unwrap(), before);
    assert_described(&sandbox).await;
    sandbox.kill().await.unwrap();
}

/// Not a test by itself: the program that the next test starts and kills.
#[tokio::test(flavor = "multi_thread")]
async fn program_with_a_sandbox() {
    let Some(confinement) = std::env::var_os("WRENN_TEST_CONFINEMENT") else { return };
    let confinement = if confinement == "jailer" { Confinement::Jailer } else { Confinement::User };
    let host = with(|host| host.confinement(confinement)).await;
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    println!("pid {}", sandbox.vmm_pid().await.unwrap());
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_killed_takes_its_vmm_along_jailed_or_not() {
    let (_host, _alone) = firecracker_or_return!();
    for confinement in ["user", "jailer"] {
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "program_with_a_sandbox", "--nocapture"]).kill_on_drop(true);
        command.env("WRENN_TEST_CONFINEMENT", confinement).stdout(std::process::Stdio::piped());
        let mut program = command.spawn().unwrap();
        let mut lines = tokio::io::BufReader::new(program.stdout.take().unwrap());
        let pid: u32 = loop {
            let mut line = String::new();
            let read = tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line);
            let read = tokio::time::timeout(Duration::from_secs(120), read).await.expect("no sandbox in two minutes");
            assert!(read.unwrap() > 0, "the program ended");
            if let Some((_, pid)) = line.trim().rsplit_once("pid ") {
                break pid.parse().unwrap();
            }
        };
        assert!(common::is_alive(pid));
        let killed = tokio::time::timeout(Duration::from_secs(60), program.kill()).await;
        killed.expect("the program does not end").unwrap();
        for _ in 0..250 {
            if !common::is_alive(pid) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        assert!(!common::is_alive(pid), "{confinement}: Firecracker outlived its program");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_right_is_refused_by_name() {
    let (host, _alone) = firecracker_or_return!();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    let paused = sandbox.pause().await.unwrap();

    // Another version: a program that says so, and is the same otherwise.
    let dir = tempfile::tempdir().unwrap();
    let newer = dir.path().join("firecracker");
    let real = std::env::var("WRENN_FIRECRACKER").unwrap_or_else(|_| "firecracker".to_owned());
    let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'Firecracker v1.99.0'\nexec {real} \"$@\"\n");
    std::fs::write(&newer, script).unwrap();
    std::fs::set_permissions(&newer, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let other = with(|host| host.firecracker(&newer)).await;
    let error = other.paused(paused.id()).await.unwrap().resume().await.unwrap_err();
    assert!(error.to_string().contains("firecracker 1.99.0"), "{error}");

    let refused = on_another_processor(paused.id());
    assert!(refused.contains("processor vendor is") && refused.contains("NobodysCpu"), "{refused}");

    let files = generation_files(&host, &paused);
    let state = files.iter().find(|path| path.to_string_lossy().contains("state")).unwrap();
    flip_a_bit(state);
    let error = host.paused(paused.id()).await.unwrap().resume().await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
    flip_a_bit(state);

    let memory = files.iter().find(|path| path.to_string_lossy().contains("memory")).unwrap();
    let aside = memory.with_extension("aside");
    std::fs::rename(memory, &aside).unwrap();
    let error = host.paused(paused.id()).await.unwrap().resume().await.unwrap_err();
    let text = format!("{error}: {:?}", std::error::Error::source(&error));
    assert!(text.contains(memory.file_name().unwrap().to_str().unwrap()), "{text}");
    assert!(own_firecrackers().is_empty());
    std::fs::rename(&aside, memory).unwrap();

    let sandbox = host.paused(paused.id()).await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "echo whole").await, "whole");
    sandbox.kill().await.unwrap();
}

/// Not a test by itself: the program that `on_another_processor` runs.
#[tokio::test(flavor = "multi_thread")]
async fn program_on_another_processor() {
    let Ok(id) = std::env::var("WRENN_TEST_RESUME") else { return };
    let id: SandboxId = id.parse().unwrap();
    let error = with(|host| host).await.paused(&id).await.unwrap().resume().await.unwrap_err();
    println!("refused: {error}");
}

/// What a program is told that resumes the sandbox where `/proc/cpuinfo` has another vendor.
fn on_another_processor(id: &SandboxId) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cpuinfo");
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let vendor = cpuinfo.lines().find_map(|line| line.strip_prefix("vendor_id\t: ")).unwrap();
    std::fs::write(&file, cpuinfo.replace(vendor, "NobodysCpu")).unwrap();
    let line = r#"mount --bind "$1" /proc/cpuinfo && exec "$2" --exact program_on_another_processor --nocapture"#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", line, "sh"]).arg(&file).arg(std::env::current_exe().unwrap());
    let output = command.env("WRENN_TEST_RESUME", id.to_string()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn generation_files(host: &Host, paused: &PausedSandbox) -> Vec<PathBuf> {
    let record = std::fs::read_to_string(host.data_dir().join(format!("sandboxes/{}.json", paused.id()))).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    common::files(&host.data_dir().join("generations").join(record["generation"].as_str().unwrap()))
}

fn flip_a_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn own_firecrackers() -> Vec<u32> {
    let is_it =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|n| n.trim() == "firecracker");
    common::own_vmms().into_iter().filter(is_it).collect()
}

fn kill(pid: u32) {
    signal(pid, Signal::SIGKILL);
}

fn signal(pid: u32, signal: Signal) {
    nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// No process, no name of a drive, nothing in the place of the rooms.
async fn assert_nothing_left(host: &Host) {
    for _ in 0..250 {
        if own_firecrackers().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert_eq!(own_firecrackers(), Vec::<u32>::new());
    assert_eq!(names(&host.data_dir().join("vmm")), ["room"]);
    assert_eq!(names(&host.data_dir().join("vmm/room")), Vec::<String>::new());
}

fn names(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}
