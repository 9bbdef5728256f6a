//! What a started process is: programs of the host stand for a VMM.

use super::*;
use crate::vmm::devices;
use crate::vmm::identity::Identity;
use crate::vmm::launch::{Enter, Tracing};

/// What a jailer does: changes its user, and executes another program.
const JAILER: &str = "setpriv";
const ARGUMENTS: [&str; 5] = ["--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "60"];

#[tokio::test]
async fn a_vmm_that_a_jailer_executes_dies_with_its_thread() {
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: a_vmm_that_a_jailer_executes_dies_with_its_thread: a jailer needs root");
        return;
    }
    let Some(program) = crate::program::on_path(JAILER) else {
        println!("skipped: a_vmm_that_a_jailer_executes_dies_with_its_thread: there is no {JAILER}");
        return;
    };
    let launch = Launch {
        enter: None,
        namespaces: None,
        directory: "/".into(),
        program,
        arguments: ARGUMENTS.map(str::to_owned).to_vec(),
        inherited: Vec::new(),
        identity: None,
        tracing: Tracing::NextExec,
        is_served: false,
        exit_code: |_| None,
    };
    let (_output, theirs) = io::pipe().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut child, spawned) = start(launch, theirs.into(), &OnceLock::new()).unwrap();
        assert!(matches!(child.try_wait(), Ok(None)));
        (child, spawned.pid)
    });
    // The thread has ended, and the child has not been killed by anybody else.
    let (mut child, pid) = thread.join().unwrap();
    let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL), "{pid}");
}

/// A line of a shell, as a VMM.
fn shell(line: &str, identity: Option<Identity>) -> Launch {
    Launch {
        enter: None,
        namespaces: None,
        directory: "/".into(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), line.to_owned()],
        inherited: Vec::new(),
        identity,
        tracing: Tracing::None,
        is_served: false,
        exit_code: |_| None,
    }
}

/// Runs a [`shell`] to its end; returns how it ended, and what it printed.
async fn run_to_end(mut launch: Launch) -> (String, String) {
    const LAST: &str = "nothing follows\n";
    let line = launch.arguments.last_mut().unwrap();
    *line = format!("{line}; ended=$?; echo {LAST}exit $ended");
    let (process, _) = Process::spawn(launch).await.unwrap();
    let mut exited = process.exited();
    let ended = tokio::time::timeout(Duration::from_secs(30), exited.wait_for(Option::is_some)).await;
    let status = ended.unwrap().unwrap().as_ref().map(Exit::to_string).unwrap();
    // What it printed comes by a pipe, in pieces, and a moment after its end.
    for _ in 0..1000 {
        if let Some(said) = process.console().text().strip_suffix(LAST) {
            return (status, said.to_owned());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{status}, and not all of what it printed: {}", process.console().text())
}

/// The identity of a VMM; `None`, and the reason printed, for a test that cannot change its user.
fn identity(test: &str) -> Option<Identity> {
    let identity = Identity::reserve().unwrap();
    if identity.is_none() {
        println!("skipped: {test}: a change of user needs root");
    }
    identity
}

#[tokio::test]
async fn a_vmm_has_a_user_and_a_group_of_its_own_and_no_other() {
    let Some(identity) = identity("a_vmm_has_a_user_and_a_group_of_its_own_and_no_other") else { return };
    let uid = identity.uid;
    let (status, said) = run_to_end(shell("id -u; id -g; id -G", Some(identity))).await;
    assert_eq!((status.as_str(), said), ("exit status: 0", format!("{uid}\n{uid}\n{uid}\n")));
}

#[tokio::test]
async fn a_vmm_gets_no_descriptor_that_this_program_left_open_for_its_children() {
    let (open, given) = (io::pipe().unwrap().0, io::pipe().unwrap().0);
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
    let name = |fd: BorrowedFd<'_>| {
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        std::fs::read_link(link).unwrap().display().to_string()
    };
    let (left, mapped) = (name(open.as_fd()), name(given.as_fd()));
    let launch = Launch { inherited: vec![(given.into(), 40)], ..shell("ls -l /proc/self/fd", None) };
    let (_, said) = run_to_end(launch).await;
    assert!(said.contains(&format!("40 -> {mapped}")), "what it is given, it has: {said}");
    assert!(!said.contains(&left), "{left} was left open: {said}");
}

#[tokio::test]
async fn a_vmm_starts_in_a_directory_below_one_that_is_closed_to_its_user() {
    let Some(identity) = identity("a_vmm_starts_in_a_directory_below_one_that_is_closed_to_its_user") else { return };
    use std::os::unix::fs::{DirBuilderExt, chown};
    let closed = tempfile::tempdir().unwrap();
    let inside = closed.path().join("inside");
    std::fs::DirBuilder::new().mode(0o700).create(&inside).unwrap();
    chown(&inside, Some(identity.uid), Some(identity.gid)).unwrap();
    let launch = Launch { directory: inside.clone(), ..shell("echo written > file && cat file", Some(identity)) };
    let (status, said) = run_to_end(launch).await;
    assert_eq!((status.as_str(), said.as_str()), ("exit status: 0", "written\n"));
    assert!(inside.join("file").exists());
}

#[tokio::test]
async fn a_vmm_has_the_device_that_it_needs_for_itself() {
    const TEST: &str = "a_vmm_has_the_device_that_it_needs_for_itself";
    let Some(owner) = identity(TEST) else { return };
    if let Err(error) = std::fs::File::options().read(true).write(true).open(devices::KVM) {
        println!("skipped: {TEST}: {}: {error}", devices::KVM);
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let before = std::fs::metadata(devices::KVM).unwrap();
    let uid = owner.uid;
    let line = "exec 3<>/dev/kvm && stat -c '%u %g %a' /dev/kvm";
    let entering = owner.clone();
    let enter: Enter = Box::new(move || devices::own(devices::KVM, &entering));
    let (status, said) = run_to_end(Launch { enter: Some(enter), ..shell(line, Some(owner)) }).await;
    assert_eq!((status.as_str(), said), ("exit status: 0", format!("{uid} {uid} 600\n")));
    let after = std::fs::metadata(devices::KVM).unwrap();
    assert_eq!((before.uid(), before.mode(), before.ino()), (after.uid(), after.mode(), after.ino()), "the host's own");
}

/// A jailer that never executes anything.
#[tokio::test]
async fn a_start_that_hangs_is_given_up_on_and_killed() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("pid");
    let line = format!("echo $$ > {}; while :; do :; done", note.display());
    let launch = Launch { tracing: Tracing::NextExec, ..shell(&line, None) };
    let began = std::time::Instant::now();
    let error = Process::spawn_within(launch, Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    assert!(error.to_string().contains("/bin/sh did not start within 1s"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20));
    let pid: i32 = std::fs::read_to_string(note).unwrap().trim().parse().unwrap();
    for _ in 0..500 {
        if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("process {pid} is still there");
}

#[tokio::test]
async fn a_vmm_that_is_given_up_on_tells_why_to_everybody() {
    let (mut process, _) = Process::spawn(shell("sleep 60", None)).await.unwrap();
    let exited = process.exited();
    let error = process.give_up("stop the guest", "it did not answer `stop` within 20s".to_owned()).await;
    let text = error.to_string();
    assert!(matches!(error, Error::VmEnded { during: "stop the guest", .. }), "{text}");
    assert!(text.contains("killed, since it did not answer `stop` within 20s"), "{text}");
    assert_eq!(
        exited.borrow().as_ref().map(Exit::to_string).unwrap(),
        "killed, since it did not answer `stop` within 20s"
    );
}
