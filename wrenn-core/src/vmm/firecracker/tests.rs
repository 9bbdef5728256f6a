//! The driver with a real Firecracker that no guest runs in: it answers without KVM.

use super::*;

/// What a test holds of a started Firecracker.
struct Started {
    machine: FirecrackerMachine,
    _network: Arc<dyn crate::agent::connector::Connector>,
    _dir: tempfile::TempDir,
}

/// A Firecracker in a data directory that is its owner's alone. `None`, and the reason printed, where there cannot be
/// one.
async fn started(test: &str, confinement: Confinement) -> Option<Started> {
    let (firecracker, dir) = opened(test, confinement).await?;
    let network =
        crate::network::slot::Network::slot(&crate::network::way_out::HostNetwork::default().slots).await.unwrap();
    let (base, drive) = (File::open("/etc/passwd").unwrap(), crate::unnamed::unnamed_file(dir.path()).unwrap());
    let identity = crate::vmm::identity::Identity::reserve().unwrap();
    let parts = Parts { base, drive, plug: network.plug, identity, flat: None };
    let shape =
        MachineShape { vcpus: 1, memory_mib: 128, acceleration: crate::vmm::shape::Acceleration::Kvm, tsc_khz: None };
    let starting = Starting { contents: Vec::new(), mounts: Vec::new(), is_served: false };
    let machine = firecracker.start(&shape, parts, starting).await.unwrap();
    Some(Started { machine, _network: network.connector, _dir: dir })
}

/// The driver, with the real binary, and its data directory.
async fn opened(test: &str, confinement: Confinement) -> Option<(Firecracker, tempfile::TempDir)> {
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: {test}: mount namespaces need root");
        return None;
    }
    let Some(program) = Firecracker::program(None) else {
        println!("skipped: {test}: {PROGRAM} is not installed");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let firecracker = match Firecracker::open(program, confinement, dir.path()).await {
        Ok(firecracker) => firecracker,
        Err(error) => {
            println!("skipped: {test}: {error}");
            return None;
        }
    };
    Some((firecracker, dir))
}

#[tokio::test]
async fn the_start_of_firecracker_is_rehearsed_and_leaves_nothing() {
    const TEST: &str = "the_start_of_firecracker_is_rehearsed_and_leaves_nothing";
    for confinement in [Confinement::User, Confinement::Jailer] {
        let Some((firecracker, dir)) = opened(TEST, confinement).await else { return };
        firecracker.rehearse().await.unwrap();
        let rooms = dir.path().join("vmm");
        let left: Vec<_> = std::fs::read_dir(&rooms).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["room"]);
        // What a start cannot do without is told as the machine's lack.
        std::fs::remove_dir(rooms.join("room")).unwrap();
        assert!(firecracker.rehearse().await.is_err());
    }
}

#[tokio::test]
async fn firecracker_starts_below_a_directory_that_is_closed_to_its_user() {
    const TEST: &str = "firecracker_starts_below_a_directory_that_is_closed_to_its_user";
    for confinement in [Confinement::User, Confinement::Jailer] {
        let Some(mut started) = started(TEST, confinement).await else { return };
        let machine = &mut started.machine;
        let limits = serde_json::json!({ "vcpu_count": 1, "mem_size_mib": 128 });
        machine.put("describe the machine", "/machine-config", &limits, ANSWER_TIMEOUT).await.unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", machine.pid())).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        let (uid, gid) = (field("Uid:"), field("Gid:"));
        assert_eq!(uid, gid, "a group of its own");
        assert!(uid.starts_with("19"), "{uid}");
        assert_eq!(field("Groups:"), "", "{confinement:?}: and no other");
        machine.kill().await;
    }
}

#[tokio::test]
async fn a_firecracker_that_stops_answering_is_killed_and_its_end_says_so() {
    const TEST: &str = "a_firecracker_that_stops_answering_is_killed_and_its_end_says_so";
    let Some(mut started) = started(TEST, Confinement::User).await else { return };
    let machine = &mut started.machine;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(machine.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let within = std::time::Duration::from_millis(200);
    let error = machine.put("boot the guest", "/mmds", &serde_json::json!({}), within).await.unwrap_err();
    let why = "killed, since Firecracker did not answer PUT /mmds within 200ms";
    assert!(matches!(error, Error::VmEnded { .. }) && error.to_string().contains(why), "{error}");
    assert_eq!(machine.exited().borrow().as_ref().map(ToString::to_string).as_deref(), Some(why));
}

#[test]
fn a_binary_that_needs_libraries_is_refused_for_a_jail_and_says_so() {
    let error = check_jailable(Path::new("/bin/sh")).unwrap_err();
    assert!(matches!(error, Error::Host { .. }) && error.to_string().contains("/bin/sh needs libraries"), "{error}");
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "#!/bin/sh\n").unwrap();
    check_jailable(script.path()).unwrap();
}
