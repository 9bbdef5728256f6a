//! What cannot work fails with an error that names its remedy, at once, and loses nothing.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::mount::Mount;
use common::run;
use wrenn_core::{
    Driver, Error, Event, Exit, Host, NetworkPolicy, OnExpiry, Paging, Sandbox, SandboxFilter, SandboxState, Signal,
    Step, Tracking,
};

/// The whole chain of causes, as a program prints it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[tokio::test]
async fn a_missing_qemu_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::builder().data_dir(dir.path()).driver(Driver::Qemu).qemu("/nonexistent/qemu");
    let error = host.open().await.unwrap_err();
    assert!(matches!(error, Error::Host { .. }), "{error:?}");
    assert!(error.to_string().contains("/nonexistent/qemu is not here"), "{error}");
    assert!(error.to_string().contains("WRENN_QEMU"), "{error}");
}

#[tokio::test]
async fn a_program_that_is_not_qemu_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::builder().data_dir(dir.path()).driver(Driver::Qemu).qemu("/bin/true");
    let error = host.open().await.unwrap_err();
    assert!(matches!(error, Error::Host { .. }), "{error:?}");
}

#[tokio::test]
async fn a_firecracker_that_was_asked_for_and_cannot_be_had_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let host = || Host::builder().data_dir(dir.path()).driver(Driver::Firecracker);
    for program in ["/nonexistent/firecracker", "/bin/true"] {
        let error = host().firecracker(program).open().await.unwrap_err();
        assert!(matches!(error, Error::Host { .. }), "{error:?}");
        assert!(error.to_string().contains(program) && error.to_string().contains("WRENN_FIRECRACKER"), "{error}");
    }
    let old = dir.path().join("firecracker");
    std::fs::write(&old, "#!/bin/sh\necho 'Firecracker v1.7.0'\n").unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = host().firecracker(&old).open().await.unwrap_err();
    assert!(error.to_string().contains("Firecracker 1.7") && error.to_string().contains("1.16 or later"), "{error}");
    assert!(error.to_string().contains("CVE-2026-5747"), "what is wrong with it: {error}");
}

#[tokio::test]
async fn a_way_of_paging_that_the_vmm_does_not_have_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let host = || Host::builder().data_dir(dir.path()).driver(Driver::Qemu);
    // Where QEMU is not installed that is said first, and another test's matter.
    if let Err(error) = host().paging(Paging::Eager).open().await {
        println!("skipped: a_way_of_paging_that_the_vmm_does_not_have_is_refused_at_once: {error}");
        return;
    }
    let error = host().paging(Paging::Mapped).tracking(Tracking::Compare).open().await.unwrap_err();
    assert!(matches!(error, Error::Host { .. }), "{error:?}");
    assert!(error.to_string().contains("Paging::Mapped"), "{error}");
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Host::builder().data_dir(file.path().join("below")).open().await.unwrap_err();
    assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_data_directory_is_named_with_its_remedy() {
    vm_test_or_return!();
    let mount = Mount::tmpfs("size=1M,ro");
    let error = Host::open(mount.path()).await.unwrap_err();
    assert!(matches!(error, Error::Host { .. }), "{error:?}");
    assert!(error.to_string().contains("WRENN_DATA_DIR"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_templates_and_bad_shapes_are_refused_before_anything_starts() {
    vm_test_or_return!();
    let host = common::host().await;
    let unknown = Sandbox::create(&host, "nope").await.unwrap_err();
    assert!(matches!(unknown, Error::NotFound { .. }), "{unknown:?}");
    assert!(unknown.to_string().contains("base"), "it lists what there is: {unknown}");
    let malformed = Sandbox::create(&host, "../x;reboot").await.unwrap_err();
    assert!(matches!(malformed, Error::InvalidInput { .. }), "{malformed:?}");
    for memory_mib in [0, 64, 1 << 20] {
        let error = Sandbox::builder(&host, "base").memory_mib(memory_mib).create().await.unwrap_err();
        assert!(error.to_string().contains("ask for 128 to 65536 MiB"), "{error}");
    }
    for vcpus in [0, 1000] {
        let error = Sandbox::builder(&host, "base").vcpus(vcpus).create().await.unwrap_err();
        assert!(error.to_string().contains("ask for 1 to 32"), "{error}");
    }
    let error = Sandbox::builder(&host, "base").env("A=B", "c").create().await.unwrap_err();
    assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
    let error = host.sandbox(&"sb0000000000000000".parse().unwrap()).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_pause_and_the_sandbox_goes_on() {
    vm_test_or_return!();
    // Room for the template, and for little more.
    let mount = Mount::tmpfs("size=500M");
    common::link_images(mount.path());
    let host = Host::open(mount.path()).await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, "echo first > state").await;
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    let id = sandbox.id().clone();
    run(&sandbox, "head -c 30000000 /dev/urandom > /dev/shm/big; echo second > state").await;
    let ballast = mount.path().join("ballast");
    fill(&ballast);
    let error = sandbox.pause().await.unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().contains("free some"), "{error}");
    assert_eq!(sandbox.state(), SandboxState::Running);
    assert_eq!(run(&sandbox, "cat state").await, "second");
    let error = sandbox.fork(1).await.unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
    // What failed twice succeeds, with everything written before the failures.
    std::fs::remove_file(ballast).unwrap();
    let sum = run(&sandbox, "md5sum < /dev/shm/big").await;
    sandbox.pause().await.unwrap();
    let sandbox = host.paused(&id).await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "cat state; md5sum < /dev/shm/big").await, format!("second\n{sum}"));

    // Where there is room for the memory and not for the drive, both are given up, and the guest goes on.
    run(&sandbox, "rm /dev/shm/big; head -c 40000000 /dev/urandom > big; sync").await;
    let ballast = mount.path().join("ballast");
    fill(&ballast);
    std::fs::File::options()
        .write(true)
        .open(&ballast)
        .unwrap()
        .set_len(ballast.metadata().unwrap().len() - (24 << 20))
        .unwrap();
    let error = sandbox.fork(1).await.unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
    assert_eq!(run(&sandbox, "cat state").await, "second");
    std::fs::remove_file(ballast).unwrap();
    let sum = run(&sandbox, "md5sum < big").await;
    let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
    assert_eq!(run(&child, "md5sum < big").await, sum);
    child.kill().await.unwrap();
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pause_is_refused_by_name_and_nothing_is_loaded() {
    vm_test_or_return!();
    let dir = common::own_data_dir();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&steps);
    let observe = move |step| {
        record.lock().unwrap().push(step);
        Ok(())
    };
    let host = common::own_host(&dir).on_step(observe).open().await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    let paused = sandbox.pause().await.unwrap();
    let headers = |name: &str| {
        let all = common::files(dir.path()).into_iter().filter(|path| path.ends_with(name));
        // The newest is the pause's; the other is the template's.
        all.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).unwrap()
    };
    for name in ["memory.header", "drive.header", "manifest"] {
        let path = headers(name);
        let len = path.metadata().unwrap().len();
        for at in [0, len / 2, len - 1] {
            flip_a_bit(&path, at);
            steps.lock().unwrap().clear();
            let error = paused.resume().await.unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{name} at {at}: {error:?}");
            assert!(chain(&error).contains(name), "{}", chain(&error));
            assert_eq!(*steps.lock().unwrap(), [Step::Load], "nothing was started");
            flip_a_bit(&path, at);
        }
    }
    // One that is damaged keeps no program from the others.
    flip_a_bit(&headers("manifest"), 0);
    Sandbox::create(&common::own_host(&dir).open().await.unwrap(), "base").await.unwrap().kill().await.unwrap();
    flip_a_bit(&headers("manifest"), 0);
    let sandbox = paused.resume().await.unwrap();
    assert_eq!(run(&sandbox, "echo up").await, "up");
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_reboots_or_panics_ends_its_sandbox() {
    vm_test_or_return!();
    for trigger in ["b", "c"] {
        let (_host, sandbox) = common::sandbox().await;
        let began = Instant::now();
        let error =
            sandbox.exec(&format!("echo {trigger} | sudo tee /proc/sysrq-trigger; sleep 60")).await.unwrap_err();
        assert!(matches!(&error, Error::VmEnded { during: "run a command", .. }), "{error:?}");
        let Exit::VmEnded { console, .. } = sandbox.wait().await else { panic!("{:?}", sandbox.wait().await) };
        assert!(!console.is_empty() && sandbox.console().contains(console.lines().last().unwrap()), "{console}");
        assert!(trigger == "b" || sandbox.console().contains("sysrq triggered crash"), "{}", sandbox.console());
        assert!(began.elapsed() < Duration::from_secs(20), "{trigger}: {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_damaged_on_disk_never_reaches_the_guest() {
    vm_test_or_return!();
    let dir = common::own_data_dir();
    let host = common::own_host(&dir).open().await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, "head -c 20000000 /dev/zero | tr '\\0' 'x' > /dev/shm/x").await;
    let paused = sandbox.pause().await.unwrap();
    let data = common::files(dir.path()).into_iter().filter(|path| path.ends_with("memory.data"));
    let data = data.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).unwrap();
    // One bit in each page that holds the file's letters.
    let bytes = std::fs::read(&data).unwrap();
    for (page, contents) in bytes.chunks(4096).enumerate() {
        if contents.iter().all(|byte| *byte == b'x') {
            flip_a_bit(&data, page as u64 * 4096);
        }
    }
    let sandbox = paused.resume().await.unwrap();
    let error = sandbox.exec("md5sum < /dev/shm/x").await.unwrap_err();
    let Error::VmEnded { exit, .. } = &error else { panic!("{error:?}") };
    assert!(exit.contains("its memory could not be read"), "{exit}");
    paused.delete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_is_killed_fails_the_exec_at_once() {
    vm_test_or_return!();
    let (_host, sandbox) = common::sandbox().await;
    let vmm = i32::try_from(sandbox.vmm_pid().await.unwrap()).unwrap();
    let long = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.exec("sleep 600").await }
    });
    run(&sandbox, "until pgrep -x sleep > /dev/null; do sleep 0.05; done").await;
    let began = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(vmm), nix::sys::signal::Signal::SIGKILL).unwrap();
    let error = long.await.unwrap().unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let tells = |exit: &str| exit.contains("SIGKILL") && exit.contains("no memory left");
    assert!(matches!(&error, Error::VmEnded { exit, .. } if tells(exit)), "{error:?}");
    assert!(matches!(sandbox.exec("true").await, Err(Error::VmEnded { .. })));
    assert!(matches!(sandbox.pause().await, Err(Error::VmEnded { .. })));
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_fail_with_what_was_wrong_with_them() {
    vm_test_or_return!();
    let (_host, sandbox) = common::sandbox().await;
    let missing = sandbox.command("no-such-command").output().await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing:?}");
    assert!(missing.to_string().contains("no-such-command"), "{missing}");
    let nowhere = sandbox.command("true").current_dir("/nowhere").output().await.unwrap_err();
    assert!(nowhere.to_string().contains("/nowhere"), "{nowhere}");
    let nobody = sandbox.command("true").user("no-such-user").output().await.unwrap_err();
    assert!(nobody.to_string().contains("no-such-user"), "{nobody}");
    let failed = sandbox.exec("echo out; echo err >&2; exit 3").await.unwrap();
    assert_eq!(
        (failed.status.code(), failed.stdout_utf8(), failed.stderr_utf8()),
        (Some(3), "out\n".into(), "err\n".into())
    );
    let killed = sandbox.exec("kill -9 $$").await.unwrap();
    assert_eq!(killed.status.code(), None);
    let file = sandbox.read_file("/home/user/nothing").await.unwrap_err();
    assert!(matches!(file, Error::NotFound { .. }), "{file:?}");
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn output_without_end_is_bounded_and_a_late_command_is_dead_in_the_guest() {
    vm_test_or_return!();
    let (_host, sandbox) = common::sandbox().await;
    let flood = sandbox.command("yes").arg("0123456789abcdef").output_limit(300_000).output().await.unwrap_err();
    assert!(matches!(flood, Error::OutputTooLong { limit_bytes: 300_000, .. }), "{flood:?}");
    run(&sandbox, "for i in $(seq 100); do pgrep -x yes > /dev/null || exit 0; sleep 0.05; done; exit 1").await;

    let began = Instant::now();
    let late = sandbox.command("bash").args(["-c", "echo started; sleep 700 & sleep 701; echo never"]);
    let error = late.timeout(Duration::from_millis(1500)).output().await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    match &error {
        Error::CommandTimedOut { stdout, .. } => assert_eq!(stdout, b"started\n"),
        other => panic!("{other:?}"),
    }
    assert_eq!(run(&sandbox, "pgrep -fc '^sleep 70[01]' || true").await, "0", "the whole group is dead");

    // A future that is dropped takes its command along.
    let dropped = sandbox.exec("sleep 702");
    assert!(tokio::time::timeout(Duration::from_millis(700), dropped).await.is_err());
    run(&sandbox, "for i in $(seq 100); do pgrep -f '^sleep 702' > /dev/null || exit 0; sleep 0.05; done; exit 1")
        .await;
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_out_of_memory_kills_the_hog_and_not_the_agent() {
    vm_test_or_return!();
    let (_host, sandbox) = common::sandbox().await;
    let hog = "python3 -c 'a = []\nwhile True: a.append(bytearray(16 << 20))'";
    // Every page of it is a page fault of the host's.
    let hog = sandbox.command("bash").args(["-c", hog]).timeout(common::patient(Duration::from_secs(100)));
    let output = hog.output().await.unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(run(&sandbox, "echo still here").await, "still here");
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "echo still here").await, "still here");
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_streams_takes_input_and_signals() {
    vm_test_or_return!();
    let (_host, sandbox) = common::sandbox().await;
    let mut child = sandbox.command("sort").arg("-r").stdin_piped().spawn().await.unwrap();
    child.write_stdin("a\nc\n").await.unwrap();
    child.write_stdin("b\n").await.unwrap();
    child.close_stdin().await.unwrap();
    let (mut out, mut status) = (Vec::new(), None);
    while let Some(event) = child.next_event().await.unwrap() {
        match event {
            Event::Stdout(bytes) => out.extend_from_slice(&bytes),
            Event::Exit(exit) => status = Some(exit),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((out.as_slice(), status.unwrap().success()), (&b"c\nb\na\n"[..], true));

    let trap = "trap 'echo bye; exit 7' TERM; echo ready; while true; do sleep 0.05; done";
    let mut child = sandbox.command("bash").args(["-c", trap]).spawn().await.unwrap();
    assert!(matches!(child.next_event().await.unwrap(), Some(Event::Stdout(_))));
    child.signal(Signal::TERM).await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(7));

    let mut child = sandbox.command("sleep").arg("600").spawn().await.unwrap();
    child.kill().await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), None);

    // A stream that is open at a pause ends with a reason.
    let mut child = sandbox.command("sleep").arg("600").spawn().await.unwrap();
    let paused = sandbox.pause().await.unwrap();
    assert!(matches!(child.next_event().await, Err(Error::InvalidState { state: SandboxState::Paused, .. })));
    paused.delete().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_both_ways_whole_and_binary() {
    vm_test_or_return!();
    let (_host, sandbox) = common::sandbox().await;
    let bytes: Vec<u8> = (0..3_000_017_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    sandbox.write_file("/home/user/new/dir/data.bin", bytes.clone()).await.unwrap();
    assert_eq!(sandbox.read_file("/home/user/new/dir/data.bin").await.unwrap(), bytes);
    assert_eq!(run(&sandbox, "stat -c '%U %s' new/dir/data.bin").await, "user 3000017");
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_resumes_wins_and_the_other_is_refused() {
    vm_test_or_return!();
    let (host, sandbox) = common::sandbox().await;
    let paused = sandbox.pause().await.unwrap();
    assert!(matches!(sandbox.pause().await, Err(Error::InvalidState { state: SandboxState::Paused, .. })));
    let other = host.paused(sandbox.id()).await.unwrap();
    let (one, two) = tokio::join!(paused.resume(), other.resume());
    let (winner, loser) = if one.is_ok() { (one, two) } else { (two, one) };
    assert!(matches!(loser, Err(Error::InvalidState { .. })), "{loser:?}");
    assert!(matches!(paused.clone().delete().await, Err(Error::InvalidState { .. })));
    winner.unwrap().kill().await.unwrap();
    assert!(matches!(paused.resume().await, Err(Error::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_to_live_kills_or_pauses_and_the_environment_stays() {
    vm_test_or_return!();
    let host = common::host().await;
    let brief = Sandbox::builder(&host, "base").ttl(Duration::from_millis(300)).create().await.unwrap();
    let error = brief.exec("sleep 60").await.unwrap_err();
    assert!(matches!(error, Error::InvalidState { state: SandboxState::Ended, .. }), "{error:?}");

    let kept = Sandbox::builder(&host, "base").env("COLOUR", "green").label("who", "test");
    let kept = kept.ttl(Duration::from_millis(1500)).on_expiry(OnExpiry::Pause).create().await.unwrap();
    assert_eq!(run(&kept, "echo $COLOUR").await, "green");
    let error = kept.exec("sleep 60").await.unwrap_err();
    assert!(matches!(error, Error::InvalidState { state: SandboxState::Paused, .. }), "{error:?}");
    // The command is told before the sandbox's lock is let go, by which a list knows.
    let again = host.paused(kept.id()).await.unwrap().resume().await.unwrap();
    again.pause().await.unwrap();
    let info =
        host.sandboxes(&SandboxFilter::new()).await.unwrap().into_iter().find(|info| info.id == *kept.id()).unwrap();
    assert_eq!((info.state, info.labels["who"].as_str()), (SandboxState::Paused, "test"));
    let again = host.paused(kept.id()).await.unwrap().resume().await.unwrap();
    again.set_ttl(None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(run(&again, "echo $COLOUR").await, "green");
    again.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vmm_has_no_rights_and_a_guest_that_is_closed_in_reaches_nothing() {
    vm_test_or_return!();
    let host = common::host().await;
    let closed = Sandbox::builder(&host, "base").network(NetworkPolicy::closed());
    let sandbox = closed.create().await.unwrap();
    let pid = sandbox.vmm_pid().await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert!(field("Uid:").split_whitespace().all(|uid| uid.parse::<u32>().unwrap() >= 1_900_000_000), "{status}");
    assert_eq!((field("CapEff:").as_str(), field("NoNewPrivs:").as_str()), ("0000000000000000", "1"));
    assert_eq!(field("Seccomp:"), "2");
    // Firecracker has a metadata service of its own, which ends in Firecracker.
    let metadata = if host.probe().driver == Driver::Firecracker { "reached" } else { "refused" };
    // Cloud metadata, the host end of the tap, and the world.
    let targets = [("169.254.169.254/80", metadata), ("169.254.0.22/22", "refused"), ("1.1.1.1/443", "refused")];
    for (target, expected) in targets {
        let line = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{target}' 2>/dev/null && echo reached || echo refused");
        assert_eq!(run(&sandbox, &line).await, expected, "{target}");
    }
    // The agent asks a process of the guest for the token too.
    let line = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:49983/envs";
    assert_eq!(run(&sandbox, line).await, "401");
    sandbox.kill().await.unwrap();
}

fn flip_a_bit(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Leaves less than a page.
fn fill(path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    let mut at = 0;
    for size in [1 << 20, 4096] {
        let chunk = vec![1; size];
        while file.write_all_at(&chunk, at).is_ok() {
            at += size as u64;
        }
    }
}
