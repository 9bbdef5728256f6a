//! The driver with a real QEMU, whose machine waits for a state that never comes: no guest runs.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use serde_json::Value;
use wrenn_snapshot::{Generation, PAGE_BYTES, Space};

use super::*;
use crate::network::slot::Network;
use crate::network::way_out::HostNetwork;
use crate::vmm::identity::Identity;
use crate::vmm::memory::SharedMemory;
use crate::vmm::phases::RestorePhases;
use crate::vmm::qemu::binary::PROGRAM;
use crate::vmm::shape::Acceleration;
use crate::vmm::tracking::Tracking;
use crate::vmm::ways::Asked;

struct Waiting {
    machine: QemuMachine,
    namespace: u64,
    uffds: Option<Userfaultfds>,
    _network: std::sync::Arc<dyn crate::agent::connector::Connector>,
}

/// A QEMU that is told to restore, and from what is not said yet. `None`, and the reason printed, where there cannot be
/// one.
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
    let network = Network::slot(&HostNetwork::default().slots).await.unwrap();
    let Plug::Tap { namespaces, .. } = &network.plug else { panic!("a slot has a tap") };
    let namespace = File::from(namespaces.net.try_clone().unwrap()).metadata().unwrap().ino();
    // QEMU takes a descriptor for what it was opened for.
    let base = tempfile::NamedTempFile::new().unwrap();
    base.as_file().set_len(1 << 20).unwrap();
    let (base, drive) = (File::open(base.path()).unwrap(), tempfile::tempfile().unwrap());
    drive.set_len(1 << 20).unwrap();
    let identity = Identity::reserve().unwrap();
    let parts = Parts { base, drive, plug: network.plug, identity, flat: None };
    let memory = reserve(&shape).unwrap();
    let (machine, uffds) = qemu.start(&shape, parts, memory, Launching::StandBy(paging)).await.unwrap();
    Some(Waiting { machine, namespace, uffds, _network: network.connector })
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

/// What a restored guest reads and writes, by its VMM's own address space, and what a snapshot then has of it, with each
/// way of tracking.
#[tokio::test(flavor = "multi_thread")]
async fn memory_that_comes_lazily_is_the_snapshots_and_what_is_written_to_it_is_found() {
    const TEST: &str = "memory_that_comes_lazily_is_the_snapshots_and_what_is_written_to_it_is_found";
    for tracking in [Tracking::Async, Tracking::Sync, Tracking::Compare] {
        if let Err(error) = (Asked { paging: None, tracking: Some(tracking) }).choose(&Ways::of_qemu()) {
            println!("skipped: {TEST}: {error}");
            continue;
        }
        let began = Instant::now();
        let Some(Waiting { mut machine, uffds, .. }) = waiting(TEST, Paging::OnDemand).await else { return };
        let dir = tempfile::tempdir().unwrap();
        let store = wrenn_snapshot::LocalStore::open(dir.path()).unwrap();
        let (generation, mut content) = template(&store);
        let from = Restore {
            generation: generation.clone(),
            paging: Paging::OnDemand,
            tracking,
            working_set: None,
            shared: None,
        };
        machine.serve(uffds.unwrap(), from).await.unwrap();
        let report = machine.restore_report().unwrap();
        assert_eq!(report.tracking, tracking);
        let RestorePhases { spawn, populate, load, describe, run } = report.phases;
        assert!(!spawn.is_zero() && !populate.is_zero() && spawn + populate <= began.elapsed(), "{report:?}");
        assert_eq!([load, describe, run], [Duration::ZERO; 3], "nothing was loaded");

        let space = AddressSpace::of(&machine, "memfd:wrenn-guest-memory");
        let touch = move || {
            let read = space.read(40 * PAGE_BYTES, 3 * PAGE_BYTES);
            WRITTEN.into_iter().for_each(|page| space.write(page * PAGE_BYTES + 5, &[0xAB; 10]));
            read
        };
        let read = tokio::time::timeout(Duration::from_secs(60), tokio::task::spawn_blocking(touch)).await;
        assert_eq!(read.expect("nobody serves it").unwrap(), content[40 * PAGE_BYTES..43 * PAGE_BYTES], "{tracking:?}");

        let saved = publish(&store, Some(&generation), |into| machine.save_memory_of_test(into));
        for page in WRITTEN {
            content[page * PAGE_BYTES + 5..][..10].fill(0xAB);
        }
        let mut found = vec![0; MEMORY_BYTES];
        saved.reader(Space::Memory).unwrap().read_at(wrenn_snapshot::PageIndex(0), &mut found).unwrap();
        assert!(found == content, "{tracking:?}: the snapshot is not what the guest has");
        let written = saved.written_bytes() / PAGE_BYTES as u64;
        // A fault puts pages around the written one in place, too: tracking knows them to be clean, and comparing sees
        // it.
        assert_eq!(
            written,
            WRITTEN.len() as u64 + 1,
            "{tracking:?}: the pages that were written, and one of the drive"
        );
        machine.kill().await;
    }
}

/// Where a machine has its memory, as its own address space has it.
struct AddressSpace {
    pid: nix::unistd::Pid,
    base: usize,
}

impl AddressSpace {
    /// `name` is what the kernel calls the file that is mapped.
    fn of(machine: &QemuMachine, name: &str) -> Self {
        let mapped = std::fs::read_to_string(format!("/proc/{}/maps", machine.pid())).unwrap();
        let line = mapped.lines().find(|line| line.contains(name)).unwrap();
        let base = usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        Self { pid: nix::unistd::Pid::from_raw(i32::try_from(machine.pid()).unwrap()), base }
    }

    fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let mut read = vec![0; len];
        let remote = [RemoteIoVec { base: self.base + at, len }];
        process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut read)], &remote).unwrap();
        read
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let remote = [RemoteIoVec { base: self.base + at, len: bytes.len() }];
        process_vm_writev(self.pid, &[IoSlice::new(bytes)], &remote).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_map_one_memory_and_what_each_writes_is_its_own_and_is_found() {
    const TEST: &str = "clones_map_one_memory_and_what_each_writes_is_its_own_and_is_found";
    if let Err(error) = (Asked { paging: Some(Paging::Mapped), tracking: None }).choose(&Ways::of_qemu()) {
        return println!("skipped: {TEST}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let store = wrenn_snapshot::LocalStore::open(dir.path()).unwrap();
    let (template, content) = template(&store);
    let reader = template.reader(Space::Memory).unwrap();
    let shared = SharedMemory::filled(|file| reader.copy_into(file, Path::new("a test"))).unwrap().unwrap();
    let shared = Arc::new(shared);
    let mut clones = Vec::new();
    for _ in 0..2 {
        let waiting = waiting(TEST, Paging::Mapped).await;
        let Some(Waiting { mut machine, uffds, _network, .. }) = waiting else { return };
        machine.map(uffds.unwrap(), &shared).await.unwrap();
        let report = machine.restore_report().unwrap();
        assert_eq!((report.paging, report.tracking), (Paging::Mapped, Tracking::Async));
        let kept = std::fs::read_dir(format!("/proc/{}/fd", machine.pid())).unwrap().flatten();
        let kept: Vec<_> = kept.filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect();
        assert!(!kept.iter().any(|link| link.to_string_lossy().contains(SHARED)), "{kept:?}");
        let space = AddressSpace::of(&machine, SHARED);
        clones.push((machine, space, _network));
    }
    let [(mut first, of_first, _), (mut second, of_second, _)] = clones.try_into().ok().unwrap();
    assert!(of_first.read(0, MEMORY_BYTES) == content, "it has what the template has");
    for page in WRITTEN {
        of_first.write(page * PAGE_BYTES + 5, &[0xAB; 10]);
    }
    of_second.write(300 * PAGE_BYTES, &[0xCD]);
    assert!(of_second.read(0, PAGE_BYTES) == content[..PAGE_BYTES], "what another clone wrote is here");

    // QEMU goes on where it was interrupted.
    first.execute("test", "query-status", Value::Null).await.unwrap();
    for (machine, written) in [(&first, WRITTEN.len()), (&second, 1)] {
        let saved = publish(&store, Some(&template), |into| machine.save_memory_of_test(into));
        assert_eq!(saved.written_bytes() / PAGE_BYTES as u64, written as u64 + 1, "and a page of the drive");
    }
    let saved = publish(&store, Some(&template), |into| first.save_memory_of_test(into));
    let mut expected = content.clone();
    for page in WRITTEN {
        expected[page * PAGE_BYTES + 5..][..10].fill(0xAB);
    }
    let mut found = vec![0; MEMORY_BYTES];
    saved.reader(Space::Memory).unwrap().read_at(wrenn_snapshot::PageIndex(0), &mut found).unwrap();
    assert!(found == expected, "the snapshot is not what the guest has");

    second.kill().await;
    assert!(of_first.read(0, MEMORY_BYTES) == expected);
    first.kill().await;
    let mut left = vec![0; MEMORY_BYTES];
    File::from(shared.fd().try_clone_to_owned().unwrap()).read_exact_at(&mut left, 0).unwrap();
    assert!(left == content, "a clone has changed what the others have");
    let file = File::from(shared.fd().try_clone_to_owned().unwrap());
    assert!(file.write_all_at(b"x", 0).is_err() && file.set_len(0).is_err(), "nobody can change it");
}

/// A generation, each page of which says which it is, and its memory.
fn template(store: &wrenn_snapshot::LocalStore) -> (Generation, Vec<u8>) {
    let mut content = vec![0; MEMORY_BYTES];
    for (number, page) in content.chunks_exact_mut(PAGE_BYTES).enumerate() {
        page.fill(u8::try_from(number % 7).unwrap());
    }
    let generation = publish(store, None, |mut into| {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&content, 0).unwrap();
        into.add_sparse(&file).unwrap();
        into
    });
    (generation, content)
}

fn publish(
    store: &wrenn_snapshot::LocalStore,
    parent: Option<&Generation>,
    memory: impl FnOnce(wrenn_snapshot::SpaceWriter) -> wrenn_snapshot::SpaceWriter,
) -> Generation {
    let mut pending = store.begin(parent).unwrap();
    let into = memory(pending.space_writer(Space::Memory).unwrap());
    pending.seal(into).unwrap();
    pending.write_dirty(Space::Drive, &[1; PAGE_BYTES], &[wrenn_snapshot::PageRange::new(0, 1)]).unwrap();
    pending.publish(b"").unwrap()
}

const MEMORY_BYTES: usize = 128 << 20;
const SHARED: &str = "memfd:wrenn-shared-memory";
/// The first page, two beside each other, and the last.
const WRITTEN: [usize; 4] = [0, 300, 301, 32_767];
