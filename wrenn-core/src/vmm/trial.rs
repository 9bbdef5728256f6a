//! Tries a way of tracking on a little memory of this program: pages come lazily, and what is written is found.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::time::Duration;

use memmap2::MmapRaw;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use wrenn_snapshot::{
    ByteSource, DirtyTracker, Features, PAGE_BYTES, PageIndex, PageRange, PageServer, Region, ServeOptions, StopHandle,
    Tracking, arm_file,
};

use crate::error::BoxError;
use crate::patience::patient;
use crate::vmm::memory::GuestMemory;
use crate::vmm::userfaultfd::Device;

/// Serves and tracks memory by userfaultfd. Blocks for a millisecond.
///
/// # Errors
/// What the kernel refused, or did wrong.
pub(super) fn serve_and_track(tracking: Tracking) -> Result<(), BoxError> {
    let uffd = Device::open()?.userfaultfd()?;
    let memory = GuestMemory::create(PAGES as usize * PAGE_BYTES)?;
    let map = MmapRaw::map_raw(&memory.fd())?;
    let start = map.as_ptr().expose_provenance();
    let region = Region::new(u64::try_from(start)?, u64::try_from(map.len())?, 0);
    let features = match tracking {
        Tracking::Sync => Features::SERVE_AND_TRACK_SYNC,
        _ => Features::SERVE_AND_TRACK,
    };
    arm_file(uffd.as_fd(), &[region], features)?;
    let scanned = match tracking {
        Tracking::Sync => None,
        _ => Some(DirtyTracker::of_file(File::open("/proc/self/pagemap")?, vec![region], file_of(memory.fd())?)?),
    };
    let source = Box::new(ByteSource::new(vec![CONTENT; map.len()])?);
    let options = ServeOptions { tracking, ..ServeOptions::default() };
    let server = PageServer::new(uffd, vec![region], source, options)?;
    let mut tracker = match scanned {
        Some(scanned) => scanned,
        None => server.tracker(Some(file_of(memory.fd())?))?,
    };
    let (stop, (done, is_done)) = (StopHandle::new()?, mpsc::channel());
    std::thread::scope(|scope| {
        let handle = stop.clone();
        let serving = scope.spawn(move || server.serve(&handle));
        scope.spawn(move || done.send(touch(start, &mut tracker)));
        let touched = is_done.recv_timeout(patient(TOUCH_TIMEOUT));
        stop.stop();
        // With this, the last of the descriptor goes, or the tracker has it: whoever waits for a page is let go.
        drop(serving.join());
        touched.map_err(|_| BoxError::from("a page of memory did not come, or a write to one did not go on"))?
    })
}

/// Reads a page and writes two, one of them twice, as a VMM's system calls do.
fn touch(start: usize, tracker: &mut DirtyTracker) -> Result<(), BoxError> {
    let at = |page: PageIndex| RemoteIoVec { base: start + page.0 as usize * PAGE_BYTES, len: 1 };
    let write = |page| process_vm_writev(Pid::this(), &[IoSlice::new(&[!CONTENT])], &[at(page)]);
    let mut byte = [0];
    process_vm_readv(Pid::this(), &mut [IoSliceMut::new(&mut byte)], &[at(READ)])?;
    if byte != [CONTENT] {
        return Err("a page of memory came with other content".into());
    }
    for expected in [vec![WRITTEN, THERE], vec![THERE]] {
        expected.iter().try_for_each(|page| write(*page).map(drop))?;
        let found = tracker.collect()?;
        let expected: Vec<_> = expected.iter().map(|page| PageRange { start: *page, count: 1 }).collect();
        if found != expected {
            return Err(format!("pages {expected:?} were written, and {found:?} were found").into());
        }
    }
    Ok(())
}

fn file_of(fd: BorrowedFd<'_>) -> std::io::Result<File> {
    fd.try_clone_to_owned().map(File::from)
}

const PAGES: u32 = 64;
const CONTENT: u8 = 0x5a;
const READ: PageIndex = PageIndex(40);
/// Far from what is read, so that it is not there before it is written.
const WRITTEN: PageIndex = PageIndex(3);
/// Comes with the page that is read.
const THERE: PageIndex = PageIndex(42);
/// It takes some hundred microseconds.
const TOUCH_TIMEOUT: Duration = Duration::from_secs(5);
