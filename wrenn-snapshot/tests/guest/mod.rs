//! A guest: another process that maps shared memory, hands its userfaultfd over, and touches pages when it is told.

#![allow(dead_code, reason = "each test file uses a part of this")]
#![expect(unsafe_code, reason = "a mapping of shared memory, and a descriptor that arrives in a message")]

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use memmap2::{Mmap, MmapMut, UncheckedAdvice};
use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use wrenn_snapshot::{DirtyTracker, Features, PAGE_BYTES, Region, arm, create_uffd};

/// The other process, seen from the test. Dropping it kills it.
pub(crate) struct Guest {
    child: Child,
    stream: UnixStream,
    pub(crate) memory: File,
    pub(crate) region: Region,
}

impl Guest {
    /// Starts a guest of `pages` pages, or says why the test is skipped.
    pub(crate) fn start(test: &str, pages: u32) -> Option<(Self, OwnedFd)> {
        if let Err(error) = create_uffd() {
            skipped(test, &error);
            return None;
        }
        let memory = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        let len_bytes = u64::from(pages) * PAGE_BYTES as u64;
        memory.set_len(len_bytes).expect("the memory has a size");
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("socket")).expect("a socket");
        let child = Command::new(std::env::current_exe().expect("the test's own name"))
            .args(["--exact", "guest_process", "--ignored", "--nocapture"])
            .env("GUEST_SOCKET", dir.path().join("socket"))
            .env("GUEST_MEMORY", format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd()))
            .stdout(Stdio::null())
            .spawn()
            .expect("the test runs itself");
        let (stream, _) = listener.accept().expect("the guest connects");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket has time-outs");
        let (uffd, host_addr) = receive(&stream);
        let region = Region::new(host_addr, len_bytes, 0);
        Some((Self { child, stream, memory, region }, uffd))
    }

    /// Starts a guest whose whole memory is one armed region.
    pub(crate) fn armed(test: &str, pages: u32, features: Features) -> Option<(Self, OwnedFd, DirtyTracker)> {
        let (guest, uffd) = Self::start(test, pages)?;
        if let Err(error) = arm(std::os::fd::AsFd::as_fd(&uffd), &[guest.region], features) {
            skipped(test, &error);
            return None;
        }
        let tracker = DirtyTracker::new(guest.pagemap(), vec![guest.region]).expect("the region is whole pages");
        Some((guest, uffd, tracker))
    }

    pub(crate) fn pagemap(&self) -> File {
        File::open(format!("/proc/{}/pagemap", self.child.id())).expect("the guest has a pagemap")
    }

    /// A descriptor that becomes readable when the guest dies.
    pub(crate) fn pidfd(&self) -> OwnedFd {
        // SAFETY: pidfd_open(2) takes numbers alone and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.child.id(), 0) };
        let fd = RawFd::try_from(fd).expect("a descriptor");
        assert!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor, and nobody else has it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the guest can be killed");
        self.child.wait().expect("the guest has died");
    }

    /// The whole memory, as the pausing side sees it.
    pub(crate) fn view(&self) -> Mmap {
        // SAFETY: the file is ours and is not truncated. The guest writes only while it serves a request of ours.
        unsafe { Mmap::map(&self.memory) }.expect("a memfd can be mapped")
    }

    /// Reads a page, and returns its checksum.
    pub(crate) fn read(&mut self, page: u32) -> u64 {
        self.ask(b'r', page, 0)
    }

    /// Writes the first byte of a page.
    pub(crate) fn write(&mut self, page: u32, value: u32) {
        self.ask(b'w', page, value);
    }

    /// Writes all of a page.
    pub(crate) fn fill(&mut self, page: u32, value: u32) {
        self.ask(b'f', page, value);
    }

    /// Discards pages (`MADV_REMOVE`).
    pub(crate) fn discard(&mut self, page: u32, count: u32) {
        self.ask(b'd', page, count);
    }

    /// Reads every page, from four threads at once, and returns the checksum of all.
    pub(crate) fn read_all(&mut self) -> u64 {
        self.ask(b'a', 0, 0)
    }

    /// Discards pages on one thread while another reads them, and returns how many pages read as neither zeros nor
    /// what [`obey`] takes for the source's: `page + 1`.
    pub(crate) fn race_discards(&mut self, rounds: u32) -> u64 {
        self.ask(b'x', 0, rounds)
    }

    /// Asks for a read, and does not wait for it.
    pub(crate) fn begin_read(&mut self, page: u32) {
        self.send(b'r', page, 0);
    }

    /// Waits for what was begun.
    pub(crate) fn finish(&mut self) -> u64 {
        let mut answer = [0; 8];
        self.stream.read_exact(&mut answer).expect("the guest answers in time");
        u64::from_le_bytes(answer)
    }

    fn ask(&mut self, verb: u8, page: u32, value: u32) -> u64 {
        self.send(verb, page, value);
        self.finish()
    }

    fn send(&mut self, verb: u8, page: u32, value: u32) {
        let request = [&[verb][..], &page.to_le_bytes(), &value.to_le_bytes()].concat();
        self.stream.write_all(&request).expect("the guest listens");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says that a test did not run: past the test harness, which shows only what failing tests print.
fn skipped(test: &str, error: &wrenn_snapshot::Error) {
    let source = std::error::Error::source(error).map_or_else(String::new, ToString::to_string);
    writeln!(std::io::stderr(), "skipped: {test}: {error}: {source}").expect("standard error is open");
}

/// The checksum that the guest gives of these bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    crc32c::crc32c(bytes).into()
}

/// The guest's own side: call it from an ignored test named `guest_process`.
pub(crate) fn run() {
    let Some(socket) = std::env::var_os("GUEST_SOCKET") else { return };
    let mut stream = UnixStream::connect(socket).expect("the test listens");
    let memory = File::options().read(true).write(true).open(std::env::var_os("GUEST_MEMORY").expect("a path"));
    // SAFETY: the file is the test's memfd, which is not truncated. The test reads it only between requests.
    let mut memory = unsafe { MmapMut::map_mut(&memory.expect("the memory")) }.expect("a mapping");
    let uffd = create_uffd().expect("a userfaultfd");
    let addr = (memory.as_ptr() as u64).to_le_bytes();
    let fds: [RawFd; 1] = [uffd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&addr)], &rights, MsgFlags::empty(), None).expect("sent");
    let mut request = [0; 9];
    while stream.read_exact(&mut request).is_ok() {
        let number = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().expect("four bytes"));
        let answer = obey(&mut memory, request[0], number(1), number(5));
        stream.write_all(&answer.to_le_bytes()).expect("the test waits");
    }
}

fn obey(memory: &mut MmapMut, verb: u8, page: u32, value: u32) -> u64 {
    let range = page as usize * PAGE_BYTES..(page as usize + 1) * PAGE_BYTES;
    let byte = u8::try_from(value & 0xff).expect("a byte");
    match verb {
        b'r' => checksum(&memory[range]),
        b'w' => {
            memory[range.start] = byte;
            0
        }
        b'f' => {
            memory[range].fill(byte);
            0
        }
        b'd' => {
            let len = value as usize * PAGE_BYTES;
            // SAFETY: nothing borrows the pages, and that they read as zeros afterwards is what is wanted.
            unsafe { memory.unchecked_advise_range(UncheckedAdvice::Remove, range.start, len) }.expect("discarded");
            0
        }
        b'x' => {
            let memory = &*memory;
            let pages = memory.len() / PAGE_BYTES;
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    for round in 0..value as usize {
                        let at = (round * 5 % (pages - 4)) * PAGE_BYTES;
                        // SAFETY: the other thread expects a page to become zeros at any time, and the bytes are
                        // plain integers.
                        let discarded =
                            unsafe { memory.unchecked_advise_range(UncheckedAdvice::Remove, at, 4 * PAGE_BYTES) };
                        discarded.expect("discarded");
                    }
                });
                let reader = scope.spawn(move || {
                    (0..value as usize)
                        .map(|round| {
                            let page = round * 3 % pages;
                            let byte = memory[page * PAGE_BYTES + 100];
                            u64::from(byte != 0 && usize::from(byte) != page + 1)
                        })
                        .sum()
                });
                reader.join().expect("the reader does not panic")
            })
        }
        b'a' => {
            std::thread::scope(|scope| {
                for first in 0..4 {
                    let memory = &memory;
                    scope.spawn(move || {
                        memory
                            .iter()
                            .skip(first * PAGE_BYTES / 2)
                            .step_by(PAGE_BYTES)
                            .map(|byte| u64::from(*byte))
                            .sum::<u64>()
                    });
                }
            });
            checksum(memory)
        }
        _ => unreachable!("the test knows the verbs"),
    }
}

fn receive(stream: &UnixStream) -> (OwnedFd, u64) {
    let mut addr = [0; 8];
    let mut space = nix::cmsg_space!(RawFd);
    let mut into = [IoSliceMut::new(&mut addr)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = message.expect("the guest sends its descriptor");
    let fd = message.cmsgs().expect("the message is whole").find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd.expect("the message has a descriptor")) };
    (fd, u64::from_le_bytes(addr))
}
