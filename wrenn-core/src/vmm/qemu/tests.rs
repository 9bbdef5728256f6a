//! The driver with a real QEMU, whose machine waits for a state that never comes: no guest runs.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::*;
use crate::network::slot::Network;
use crate::vmm::identity::Identity;
use crate::vmm::shape::Acceleration;

struct Waiting {
    machine: QemuMachine,
    namespace: u64,
    _uffds: Option<Userfaultfds>,
    _network: std::sync::Arc<dyn crate::agent::connector::Connector>,
}

/// A QEMU that is told to restore, and from what is not said yet. `None`, and the reason printed, where there cannot be one.
async fn waiting(test: &str, paging: Paging) -> Option<Waiting> {
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: {test}: network namespaces need root");
        return None;
    }
    let Ok(qemu) = Qemu::find(None).await else {
        println!("skipped: {test}: {PROGRAM} is not installed");
        return None;
    };
    let shape = MachineShape { vcpus: 1, memory_mib: 128, acceleration: Acceleration::Tcg, tsc_khz: None };
    let network = Network::slot().await.unwrap();
    let Plug::Tap { namespace, .. } = &network.plug else { panic!("a slot has a tap") };
    let namespace = File::from(namespace.try_clone().unwrap()).metadata().unwrap().ino();
    // QEMU takes a descriptor for what it was opened for.
    let base = tempfile::NamedTempFile::new().unwrap();
    base.as_file().set_len(1 << 20).unwrap();
    let (base, drive) = (File::open(base.path()).unwrap(), tempfile::tempfile().unwrap());
    drive.set_len(1 << 20).unwrap();
    let identity = Identity::reserve().unwrap();
    let parts = Parts { base, drive, plug: network.plug, identity };
    let memory = reserve(&shape).unwrap();
    let (machine, _uffds) = qemu.start(&shape, parts, memory, Launching::Restore(paging)).await.unwrap();
    Some(Waiting { machine, namespace, _uffds, _network: network.connector })
}

#[tokio::test]
async fn qemu_is_in_its_slots_network_namespace() {
    let Some(waiting) = waiting("qemu_is_in_its_slots_network_namespace", Paging::Eager).await else { return };
    let namespace_of = |process: &str| std::fs::metadata(format!("/proc/{process}/ns/net")).unwrap().ino();
    let theirs = namespace_of(&waiting.machine.pid().to_string());
    assert_ne!(theirs, namespace_of("self"), "it is in the program's own");
    assert_eq!(theirs, waiting.namespace);
}

#[tokio::test]
async fn qemu_keeps_no_device_that_makes_userfaultfds() {
    let Some(waiting) = waiting("qemu_keeps_no_device_that_makes_userfaultfds", Paging::Lazy).await else { return };
    let descriptors = format!("/proc/{}/fd", waiting.machine.pid());
    let links =
        std::fs::read_dir(descriptors).unwrap().flatten().map(|entry| std::fs::read_link(entry.path()).unwrap());
    let links: Vec<_> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    assert!(links.iter().any(|link| link.contains("memfd:wrenn-guest-memory")), "{links:?}");
    assert!(!links.iter().any(|link| link.contains("/dev/userfaultfd")), "{links:?}");
}

#[tokio::test]
async fn a_qemu_that_stops_answering_is_killed_and_its_end_says_so() {
    const TEST: &str = "a_qemu_that_stops_answering_is_killed_and_its_end_says_so";
    let Some(mut waiting) = waiting(TEST, Paging::Eager).await else { return };
    let exited = waiting.machine.exited();
    assert!(exited.borrow().is_none());
    waiting.machine.be_impatient(Duration::from_millis(200));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(waiting.machine.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let error = waiting.machine.stop().await.unwrap_err();
    let why = "killed, since QEMU did not answer `stop` within 200ms";
    assert!(
        matches!(error, Error::VmEnded { during: "stop the guest", .. }) && error.to_string().contains(why),
        "{error}"
    );
    assert_eq!(exited.borrow().as_ref().map(ToString::to_string).as_deref(), Some(why));
    // What comes later says the same.
    let error = waiting.machine.resume().await.unwrap_err();
    assert!(matches!(error, Error::VmEnded { .. }) && error.to_string().contains(why), "{error}");
}

#[tokio::test]
async fn a_qemu_that_dies_tells_how() {
    let Some(mut waiting) = waiting("a_qemu_that_dies_tells_how", Paging::Eager).await else { return };
    let pid = nix::unistd::Pid::from_raw(i32::try_from(waiting.machine.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSEGV).unwrap();
    let error = waiting.machine.stop().await.unwrap_err();
    assert!(matches!(error, Error::VmEnded { .. }) && error.to_string().contains("signal: 11"), "{error}");
}
