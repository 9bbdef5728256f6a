//! The memory of a lazily restored machine. Pages are served when the guest touches them, and written pages are
//! tracked.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::Pid;
use wrenn_snapshot::{
    DirtyTracker, Features, HeldPages, MemoryFile, OnceResident, PageRange, PageServer, Region, ServeOptions, Space,
    SpaceWriter, StopHandle, adopt, arm_file,
};

use crate::error::{Error, Result};
use crate::runtime::blocking;
use crate::vmm::launch::Userfaultfds;
use crate::vmm::memory::GuestMemory;
use crate::vmm::origin::Served;
use crate::vmm::parts::Restore;
use crate::vmm::process::{Attendance, Process};
use crate::vmm::qemu::compared::ComparedMemory;
use crate::vmm::saved::SavedMemory;
use crate::vmm::tracking::Tracking;
use crate::vmm::userfaultfd::shake_hands;

/// The tracking of a lazily restored machine's memory, and the work that serves it.
pub(super) struct LazyMemory {
    pub(super) found: Found,
    pub(super) served: Served,
    /// The work of the VM's thread.
    pub(super) work: Attendance,
}

/// How the pages are found that a guest wrote to lazily restored memory.
#[derive(Debug, Clone)]
pub(super) enum Found {
    Tracked(Tracker),
    Compared(Arc<Mutex<ComparedMemory>>),
}

pub(super) type Tracker = Arc<Mutex<DirtyTracker>>;

impl LazyMemory {
    /// Prepares to serve the memory of `from` to a VMM that has mapped its memory and runs no guest yet. The work that
    /// this returns serves the memory until the VMM ends.
    pub(super) async fn arm(
        process: &Process,
        uffds: Userfaultfds,
        memory: &Arc<GuestMemory>,
        from: Restore,
    ) -> Result<Self> {
        let pid = process.pid();
        let watch = process.pidfd().try_clone_to_owned().map_err(|e| Error::failed(WHAT)(e.into()))?;
        let memory = Arc::clone(memory);
        blocking(WHAT, move || {
            let region = mapping_of(pid, &memory).map_err(|e| Error::failed(WHAT)(e.into()))?;
            // What the VMM wrote while it started is not the guest's.
            memory.clear().map_err(|e| Error::failed(WHAT)(e.into()))?;
            let armed = arm(pid, &uffds, region, &memory, from.tracking)?;
            let options = ServeOptions {
                tracking: armed.tracking(),
                // A microvm without a balloon discards nothing.
                once_resident: OnceResident::End,
                affinity: Some(pid.as_raw().unsigned_abs()),
                ..from.serve_options(watch)
            };
            let reader = from.generation.reader(Space::Memory)?;
            let server = PageServer::new(uffds.served, vec![region], Box::new(reader), options)?;
            let found = match armed {
                Armed::Async(tracker) => Found::Tracked(tracked(tracker)),
                Armed::Sync => Found::Tracked(tracked(server.tracker(Some(file_of(&memory)?))?)),
                Armed::Untracked => Found::Compared(ComparedMemory::new(file_of(&memory)?, &from.generation)?),
            };
            let served = Served::by(&server, from.paging);
            let stop = StopHandle::new()?;
            let work: Attendance = Box::new(move || server.serve(&stop).into());
            Ok(Self { found, served, work })
        })
        .await?
    }
}

impl Found {
    /// Notes that a generation with everything written so far is published.
    pub(super) fn commit(&self) {
        match self {
            Self::Tracked(tracker) => tracker.lock().unwrap_or_else(PoisonError::into_inner).commit(),
            // The comparison looks at the contents of pages, and has noted those that it found: there is nothing to
            // reset.
            Self::Compared(_) => {}
        }
    }
}

/// Memory that is registered with its userfaultfd, for missing pages, and for writes in some way.
enum Armed {
    Async(DirtyTracker),
    Sync,
    Untracked,
}

impl Armed {
    fn tracking(&self) -> wrenn_snapshot::Tracking {
        match self {
            Self::Async(_) => wrenn_snapshot::Tracking::Async,
            Self::Sync => wrenn_snapshot::Tracking::Sync,
            Self::Untracked => wrenn_snapshot::Tracking::Untracked,
        }
    }
}

fn arm(pid: Pid, uffds: &Userfaultfds, region: Region, memory: &GuestMemory, tracking: Tracking) -> Result<Armed> {
    let served = uffds.served.as_fd();
    match tracking {
        Tracking::Async => {
            arm_file(served, &[region], Features::SERVE_AND_TRACK.with(Features::THREAD_ID))?;
            let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(|e| Error::failed(WHAT)(e.into()))?;
            let mut tracker = DirtyTracker::of_file(pagemap, vec![region], file_of(memory)?)?;
            let hold = uffds.hold.try_clone().map_err(|e| Error::failed(WHAT)(e.into()))?;
            tracker.hold_with(served, hold)?;
            Ok(Armed::Async(tracker))
        }
        Tracking::Sync => {
            arm_file(served, &[region], Features::SERVE_AND_TRACK_SYNC.with(Features::THREAD_ID))?;
            Ok(Armed::Sync)
        }
        Tracking::Compare | Tracking::Vmm => {
            shake_hands(&uffds.served)?;
            adopt(served, &[region], wrenn_snapshot::Tracking::Untracked)?;
            Ok(Armed::Untracked)
        }
    }
}

fn tracked(tracker: DirtyTracker) -> Tracker {
    Arc::new(Mutex::new(tracker))
}

pub(super) fn file_of(memory: &GuestMemory) -> Result<File> {
    memory.fd().try_clone_to_owned().map(File::from).map_err(|e| Error::failed(READ)(e.into()))
}

/// Copies what a running guest wrote, in rounds, until a round leaves little to copy in the stop, or until the guest
/// writes as fast as the rounds copy.
pub(super) fn write_ahead(mut into: SpaceWriter, memory: &MemoryFile, tracker: &Tracker) -> Result<SpaceWriter> {
    let mut before = u64::MAX;
    for _ in 0..ROUNDS_MAX {
        let dirty = {
            let mut tracker = tracker.lock().unwrap_or_else(PoisonError::into_inner);
            let found = tracker.collect()?;
            // The first round also has the pages that a failed snapshot had found.
            if before == u64::MAX { tracker.pending() } else { found }
        };
        let pages = count(&dirty);
        into.add_running(memory, &dirty)?;
        if pages <= FEW_PAGES || pages > before / 2 {
            break;
        }
        before = pages;
    }
    Ok(into)
}

/// 2 MiB are copied in about a millisecond, which holding them takes too.
const FEW_PAGES: u64 = 512;
const ROUNDS_MAX: usize = 6;

/// The pages that a guest wrote since its last generation, as far as they are known.
pub(super) enum Written {
    /// The guest has no earlier generation.
    All(Arc<GuestMemory>),
    /// They are read from there.
    Found(Found, MemoryFile),
    /// The written pages are not known, and are found by comparing all pages.
    Unknown(Arc<GuestMemory>),
}

/// Writes the memory of a stopped machine that the guest wrote and that was not copied ahead. Each page is read only once,
/// since a VMM that was broken into may still write to it.
pub(super) fn save_memory(mut into: SpaceWriter, written: Written) -> Result<SavedMemory> {
    match written {
        Written::All(memory) => into.add_sparse(&file_of(&memory)?)?,
        Written::Unknown(memory) => into.add_compared(&file_of(&memory)?)?,
        Written::Found(Found::Compared(compared), content) => {
            let pages = compared.lock().unwrap_or_else(PoisonError::into_inner).find()?;
            into.add_running(&content, &pages)?;
        }
        Written::Found(Found::Tracked(tracker), content) => {
            let (at_once, held) = find_left(&tracker, into.stored_pages() > 0)?;
            into.add_running(&content, &at_once)?;
            if let Some(pages) = held {
                return Ok(SavedMemory::Held { pages, into });
            }
        }
    }
    Ok(SavedMemory::Written(into))
}

/// The pages that a stopped guest wrote and that were not copied ahead, in two parts: the pages to copy at once, and
/// the pages to hold while the guest goes on. Pages are held only where memory was copied ahead, since only then the
/// guest goes on.
fn find_left(tracker: &Tracker, goes_on: bool) -> Result<(Vec<PageRange>, Option<HeldPages>)> {
    let mut tracker = tracker.lock().unwrap_or_else(PoisonError::into_inner);
    // This comes before anything can fail: collected pages stay pending until they are committed.
    let found = tracker.collect()?;
    if !goes_on {
        return Ok((tracker.pending(), None));
    }
    if count(&found) <= FEW_PAGES {
        return Ok((found, None));
    }
    Ok(match tracker.hold(&found)? {
        Some((held, rest)) => (rest, Some(held)),
        None => (found, None),
    })
}

fn count(ranges: &[PageRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.count)).sum()
}

const READ: &str = "read the guest's memory";
const WHAT: &str = "serve the guest's memory";

/// Where a VMM has mapped the guest's memory.
pub(super) fn mapping_of(pid: Pid, memory: &GuestMemory) -> io::Result<Region> {
    let memory_file = nix::sys::stat::fstat(memory.fd())?;
    let device = (nix::sys::stat::major(memory_file.st_dev), nix::sys::stat::minor(memory_file.st_dev));
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let len_bytes = memory.len_bytes() as u64;
    match find_mapping(&maps, device, memory_file.st_ino) {
        Some(Mapping { start, end, offset, .. }) if offset == 0 && end - start == len_bytes => {
            Ok(Region::new(start, len_bytes, 0))
        }
        Some(_) => Err(io::Error::other("the VMM has mapped a part of the guest's memory")),
        None => Err(io::Error::other("the VMM has not mapped the guest's memory")),
    }
}

/// The first mapping of a file, which its device, by its two numbers, and its inode name together.
fn find_mapping(maps: &str, device: (u64, u64), inode: u64) -> Option<Mapping> {
    maps.lines().filter_map(parse_mapping).find(|mapping| (mapping.device, mapping.inode) == (device, inode))
}

struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    device: (u64, u64),
    inode: u64,
}

/// A line of `/proc/PID/maps`: `start-end perms offset dev inode path`.
fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let offset = hex(fields.nth(1)?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = (hex(major)?, hex(minor)?);
    Some(Mapping { start: hex(start)?, end: hex(end)?, offset, device, inode: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use wrenn_snapshot::PAGE_BYTES;

    use super::*;

    #[test]
    fn a_mapping_is_read_and_rubbish_is_not() {
        let line = "7f0a10000000-7f0a20000000 rw-s 00000000 00:01 1030  /memfd:wrenn-guest-memory (deleted)";
        let mapping = parse_mapping(line).unwrap();
        assert_eq!((mapping.start, mapping.end), (0x7f0a_1000_0000, 0x7f0a_2000_0000));
        assert_eq!((mapping.offset, mapping.inode), (0, 1030));
        let elsewhere = "100000-200000 rw-s 00000000 00:05 1030  /dev/zero (deleted)";
        let theirs = format!("{elsewhere}\n{line}\n");
        assert_eq!(find_mapping(&theirs, (0, 1), 1030).unwrap().start, 0x7f0a_1000_0000);
        assert!(find_mapping(&theirs, (8, 1), 1030).is_none());
        for rubbish in ["", "x", "1-2", "g-h r 0 0 0", "1-2 rw-s zz 00:01 1"] {
            assert!(parse_mapping(rubbish).is_none(), "{rubbish}");
        }
    }

    /// The VMM of a stopped guest was broken into, and writes to the memory that is being copied.
    #[test]
    fn memory_that_is_written_while_it_is_copied_makes_no_damaged_generation() {
        use std::os::unix::fs::FileExt;
        use std::sync::atomic::{AtomicBool, Ordering};
        const PAGES: u32 = 4096;
        let len_bytes = PAGES as usize * PAGE_BYTES;
        let memory = GuestMemory::create(len_bytes).unwrap();
        let file = File::from(memory.fd().try_clone_to_owned().unwrap());
        let content = MemoryFile::shared(file.try_clone().unwrap()).unwrap();
        let all = [PageRange::new(0, PAGES)];
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in (1..=u8::MAX).cycle() {
                    for page in 0..u64::from(PAGES) {
                        file.write_all_at(&[round; 64], page * PAGE_BYTES as u64 + 128).unwrap();
                    }
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            for _ in 0..8 {
                let dir = tempfile::tempdir().unwrap();
                let store = wrenn_snapshot::LocalStore::open(dir.path()).unwrap();
                let mut pending = store.begin(None).unwrap();
                let mut into = pending.space_writer(Space::Memory).unwrap();
                into.add_running(&content, &all).unwrap();
                pending.seal(into).unwrap();
                pending.write_dirty(Space::Drive, &[1; PAGE_BYTES], &[PageRange::new(0, 1)]).unwrap();
                let generation = pending.publish(b"").unwrap();
                let read = generation.reader(Space::Memory).unwrap();
                let result = read.read_at(wrenn_snapshot::PageIndex(0), &mut vec![0; len_bytes]);
                if result.is_err() {
                    done.store(true, Ordering::Relaxed);
                }
                result.unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
