//! Serves the memory of another process from a store, lazily: the process hands a userfaultfd over, as Firecracker does.
//!
//! ```text
//!  this process                                    the other one
//!  store a generation
//!  listen ◄──────────── descriptor, addresses ──── map memory, make a userfaultfd
//!  adopt, serve ◄──────────── faults ──────────── touch some pages
//!               ───────────── pages ────────────►
//!  ends with it                                    ends
//! ```
#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::{
    error::Error,
    io::{self, IoSlice},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use memmap2::MmapMut;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use wrenn_snapshot::{
    EndReason, Features, Generation, HandOver, LocalStore, PAGE_BYTES, PageRange, PageServer, Region, ServeOptions,
    Space, StopHandle, Tracking, adopt, arm, create_uffd,
};

const PAGES: u32 = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args_os().nth(1) {
        Some(socket) => be_served(Path::new(&socket)),
        None if create_uffd().is_err() => {
            println!("skipped: serve_a_process: no userfaultfd (be root, or set vm.unprivileged_userfaultfd=1)");
            Ok(())
        }
        None => serve(),
    }
}

/// Stores 16 MiB, starts the other process, and serves it until it ends.
fn serve() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let generation = store(&LocalStore::open(dir.path().join("store"))?)?;
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket)?;
    let other = Arc::new(Mutex::new(Command::new(std::env::current_exe()?).arg(&socket).spawn()?));
    let stop = StopHandle::new()?;
    // Whatever becomes of the other process, nobody waits for it for ever.
    let ended = stop_when_it_ends(Arc::clone(&other), stop.clone());
    let handed_over = HandOver::receive(&listener, &stop)?.ok_or("the other process handed nothing over")?;
    let HandOver { uffd, regions, connection, .. } = handed_over;
    adopt(uffd.as_fd(), &regions, Tracking::Untracked)?;
    let options = ServeOptions {
        tracking: Tracking::Untracked,
        // The other process hangs up when it ends.
        watch: Some(OwnedFd::from(connection)),
        ..ServeOptions::default()
    };
    let server = PageServer::new(uffd, regions, Box::new(generation.reader(Space::Memory)?), options)?;
    let counters = server.counters();
    let end = server.serve(&stop);
    if let EndReason::Failed(error) = end.reason {
        // Before the descriptor is dropped: it would be shown zeros for the pages that it waits for.
        other.lock().map_err(|_| "a thread panicked")?.kill()?;
        return Err(error.into());
    }
    let status = ended.join().map_err(|_| "a thread panicked")??;
    let report = counters.report();
    println!(
        "{} pages of {PAGES} came in, by {} faults of {:.0} us",
        report.pages, report.faults, report.latency_mean_us
    );
    if status.success() { Ok(()) } else { Err("the other process failed".into()) }
}

fn stop_when_it_ends(other: Arc<Mutex<Child>>, stop: StopHandle) -> JoinHandle<io::Result<ExitStatus>> {
    thread::spawn(move || {
        loop {
            let status = other.lock().map_err(|_| io::Error::other("a thread panicked"))?.try_wait();
            if let Some(status) = status.transpose() {
                stop.stop();
                return status;
            }
            thread::sleep(Duration::from_millis(10));
        }
    })
}

/// Page `n` is full of `n`, as far as that fits in a byte.
fn store(store: &LocalStore) -> wrenn_snapshot::Result<Generation> {
    let memory: Vec<u8> = (0..PAGES).flat_map(|page| [page.to_le_bytes()[0]; PAGE_BYTES]).collect();
    let mut pending = store.begin(None)?;
    pending.write_dirty(Space::Memory, &memory, &[PageRange::new(0, PAGES)])?;
    pending.publish(b"")
}

/// The other process: maps memory, hands it over, and touches every 64th page of it.
fn be_served(socket: &Path) -> Result<(), Box<dyn Error>> {
    let memory = MmapMut::map_anon(PAGES as usize * PAGE_BYTES)?;
    let uffd = create_uffd()?;
    // The first call on it alone: the server registers the regions.
    arm(uffd.as_fd(), &[], Features::NONE)?;
    let Region { host_addr, len_bytes, offset_bytes, .. } = Region::new(memory.as_ptr() as u64, memory.len() as u64, 0);
    let message = format!(
        r#"[{{"base_host_virt_addr":{host_addr},"size":{len_bytes},"offset":{offset_bytes},"page_size":4096}}]"#
    );
    let server = UnixStream::connect(socket)?;
    let descriptors = [uffd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(server.as_raw_fd(), &[IoSlice::new(message.as_bytes())], &rights, MsgFlags::empty(), None)?;
    // Nobody fills a page that is touched before the server has registered it, and it would be zeros for good.
    wait_until_registered(host_addr)?;
    for page in (0..PAGES).step_by(64) {
        assert_eq!(memory[page as usize * PAGE_BYTES], page.to_le_bytes()[0], "page {page}");
    }
    println!("every 64th page is as it was stored");
    Ok(())
}

fn wait_until_registered(host_addr: u64) -> Result<(), Box<dyn Error>> {
    for _ in 0..10_000 {
        let smaps = std::fs::read_to_string("/proc/self/smaps")?;
        let mapping = smaps.split_once(&format!("{host_addr:x}-")).map_or("", |(_, rest)| rest);
        let flags = mapping.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap_or_default();
        if flags.split_whitespace().any(|flag| flag == "um") {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err("the server did not register the memory".into())
}
