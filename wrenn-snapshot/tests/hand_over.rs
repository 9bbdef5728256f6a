//! A VMM that hands its memory over is served, and a stranger is refused and leaves nothing behind.

use std::{
    io::IoSlice,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    thread::JoinHandle,
    time::Duration,
};

use guest::{Backing, Guest, checksum, serving::Serving};
use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    socket::{ControlMessage, MsgFlags, sendmsg},
};
use wrenn_snapshot::{
    EndReason, Error, Features, Granule, HandOver, PAGE_BYTES, Region, Result, ServeOptions, StopHandle, Tracking,
    adopt, arm,
};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

/// Somebody who waits for a VMM.
struct Waiting {
    dir: tempfile::TempDir,
    stop: StopHandle,
    thread: JoinHandle<Result<Option<HandOver>>>,
}

impl Waiting {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("socket")).expect("a socket");
        let stop = StopHandle::new().expect("a handle");
        let handle = stop.clone();
        let thread = std::thread::spawn(move || HandOver::receive(&listener, &handle));
        Self { dir, stop, thread }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("socket")).expect("somebody waits")
    }

    fn end(self) -> Result<Option<HandOver>> {
        self.thread.join().expect("it does not panic")
    }
}

fn send(stream: &UnixStream, message: &[u8], descriptors: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() { &[][..] } else { &rights };
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(message)], rights, MsgFlags::empty(), None);
    assert_eq!(sent, Ok(message.len()));
}

fn message(region: &Region) -> Vec<u8> {
    let Region { host_addr, len_bytes, offset_bytes, granule } = region;
    let page = granule.bytes();
    let mapping = format!(
        r#"{{"base_host_virt_addr":{host_addr},"size":{len_bytes},"offset":{offset_bytes},"page_size":{page},"page_size_kib":{page}}}"#
    );
    format!("[{mapping}]").into_bytes()
}

#[test]
fn a_vmm_that_hands_its_memory_over_is_served_until_it_hangs_up() {
    for backing in [Backing::Private, Backing::PrivateHuge] {
        let name = "a_vmm_that_hands_its_memory_over_is_served";
        let Some((mut guest, uffd)) = Guest::start_on(name, backing, 4) else { continue };
        arm(uffd.as_fd(), &[], Features::EVENT_REMOVE).expect("the handshake");
        adopt(uffd.as_fd(), &[guest.region], Tracking::Untracked).expect("registered, as the VMM does");
        let waiting = Waiting::start();
        let vmm = waiting.connect();
        // In two parts, which a stream may come in.
        let message = message(&guest.region);
        let (early, late) = message.split_at(30);
        send(&vmm, early, &[uffd.as_raw_fd()]);
        send(&vmm, late, &[]);
        let HandOver { uffd, regions, connection, .. } = waiting.end().expect("taken").expect("not stopped");
        assert_eq!(regions, [guest.region]);
        adopt(uffd.as_fd(), &regions, Tracking::Untracked).expect("registered again");
        let memory = vec![7; usize::try_from(4 * guest.region.granule.bytes()).expect("it fits")];
        let granule = checksum(&memory[..memory.len() / 4]);
        let options = ServeOptions {
            tracking: Tracking::Untracked,
            watch: Some(OwnedFd::from(connection)),
            ..ServeOptions::default()
        };
        let serving = Serving::bytes(uffd, regions, memory, options);
        assert_eq!(guest.read(2), granule);
        guest.kill();
        drop(vmm);
        let end = serving.join();
        assert!(matches!(end.reason, EndReason::PeerGone), "{end:?}");
    }
}

#[test]
fn memory_that_the_descriptors_process_does_not_have_is_refused() {
    let name = "memory_that_the_descriptors_process_does_not_have_is_refused";
    let Some((guest, uffd)) = Guest::start(name, 4) else { return };
    arm(uffd.as_fd(), &[], Features::EVENT_REMOVE).expect("the handshake");
    for wrong in [
        Region { host_addr: 0, ..guest.region },
        Region { host_addr: guest.region.host_addr + guest.region.len_bytes, len_bytes: 1 << 40, ..guest.region },
        Region { host_addr: 1 << 62, ..guest.region },
    ] {
        let refused = adopt(uffd.as_fd(), &[wrong], Tracking::Untracked);
        assert!(matches!(refused, Err(Error::Kernel { .. })), "{wrong:x?}: {refused:?}");
    }
}

#[test]
fn who_waits_for_a_vmm_can_be_stopped_before_it_connects_and_before_it_speaks() {
    for connects in [false, true] {
        let waiting = Waiting::start();
        let vmm = connects.then(|| waiting.connect());
        waiting.stop.stop();
        let stopped = std::time::Instant::now();
        assert!(waiting.end().expect("no error").is_none());
        assert!(stopped.elapsed() < Duration::from_secs(1), "{:?}", stopped.elapsed());
        drop(vmm);
    }
}

#[test]
fn a_stranger_is_refused_and_leaves_no_descriptor_behind() {
    let region = Region { granule: Granule::Kib4, ..Region::new(1 << 32, PAGE_BYTES as u64, 0) };
    let good = message(&region);
    let half = good[..20].to_vec();
    let cases: [(&[u8], usize); 6] =
        [(&good, 0), (&good, 2), (&good, 250), (b"[{\"size\":true}]", 1), (&half, 1), (b"\0\xff", 1)];
    for (message, count) in cases {
        let ours = memfd_create(c"a stranger's", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        let waiting = Waiting::start();
        let vmm = waiting.connect();
        send(&vmm, message, &vec![ours.as_raw_fd(); count]);
        drop(vmm);
        let refused = waiting.end();
        assert!(matches!(refused, Err(Error::Invalid(_))), "{count} with {message:?}: {refused:?}");
        assert_eq!(open_strangers(), 1, "only ours: {count} with {message:?}");
    }
}

#[test]
fn a_stranger_that_dribbles_or_sends_more_descriptors_than_one_is_refused_while_it_is_connected() {
    let region = Region { granule: Granule::Kib4, ..Region::new(1 << 32, PAGE_BYTES as u64, 0) };
    let good = message(&region);
    let ours = memfd_create(c"a dribbler's", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    let descriptor = [ours.as_raw_fd()];
    // Long enough that it comes in many parts even where a reader gets several at once.
    let dribble = " ".repeat(2000).into_bytes();
    let in_bytes: Vec<&[u8]> = dribble.chunks(1).collect();
    for (parts, each) in [(good[..40].chunks(20).collect::<Vec<_>>(), &descriptor[..]), (in_bytes, &[])] {
        let waiting = Waiting::start();
        let vmm = waiting.connect();
        for part in &parts[..parts.len() - 1] {
            let rights = [ControlMessage::ScmRights(each)];
            let rights = if each.is_empty() { &[][..] } else { &rights };
            // It may have been refused by now.
            let sent = sendmsg::<()>(vmm.as_raw_fd(), &[IoSlice::new(part)], rights, MsgFlags::MSG_NOSIGNAL, None);
            if sent.is_err() {
                break;
            }
            // One part a read, for the most part.
            std::thread::sleep(Duration::from_millis(1));
        }
        if !each.is_empty() {
            send(&vmm, parts[1], each);
        }
        let started = std::time::Instant::now();
        while !waiting.thread.is_finished() {
            assert!(started.elapsed() < Duration::from_secs(10), "it waits for more");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(matches!(waiting.end(), Err(Error::Invalid(_))));
    }
}

fn open_strangers() -> usize {
    let name = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_link(entry.ok()?.path()).ok();
    let is_one = |path: &PathBuf| path.to_string_lossy().contains("a stranger's");
    std::fs::read_dir("/proc/self/fd").expect("listed").filter_map(name).filter(is_one).count()
}
