//! A restored machine's memory: served as the guest touches it, tracked as the guest writes it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::Pid;
use wrenn_snapshot::{
    DirtyTracker, Features, HeldPages, OnceResident, PageRange, PageServer, Region, RestoreReport, ServeCounters,
    ServeOptions, Space, SpaceWriter, StopHandle, TouchedPages, WorkingSet, arm_file,
};

use crate::error::{Error, Result};
use crate::runtime::blocking;
use crate::vmm::memory::GuestMemory;
use crate::vmm::paging::Paging;
use crate::vmm::parts::Restore;
use crate::vmm::process::{Attendance, Process, Userfaultfds};
use crate::vmm::saved::SavedMemory;

#[derive(Debug)]
pub(super) struct LazyMemory {
    tracker: Tracker,
    counters: Arc<ServeCounters>,
    touched: Arc<TouchedPages>,
    paging: Paging,
}

pub(super) type Tracker = Arc<Mutex<DirtyTracker>>;

impl LazyMemory {
    /// Puts the memory of `from` behind that of a VMM that has mapped it and runs nothing yet. The work that it returns
    /// serves it, for as long as the VMM lives.
    pub(super) async fn arm(
        process: &Process,
        Userfaultfds { served: uffd, hold }: Userfaultfds,
        memory: &Arc<GuestMemory>,
        from: Restore,
    ) -> Result<(Self, Attendance)> {
        let pid = process.pid();
        let watch = process.pidfd().try_clone_to_owned().map_err(|e| Error::failed(WHAT)(e.into()))?;
        let memory = Arc::clone(memory);
        blocking(WHAT, move || {
            let region = mapping_of(pid, &memory).map_err(|e| Error::failed(WHAT)(e.into()))?;
            // What the VMM wrote while it started is not the guest's.
            memory.clear().map_err(|e| Error::failed(WHAT)(e.into()))?;
            arm_file(uffd.as_fd(), &[region], Features::SERVE_AND_TRACK)?;
            let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(|e| Error::failed(WHAT)(e.into()))?;
            let file = memory.fd().try_clone_to_owned().map_err(|e| Error::failed(WHAT)(e.into()))?.into();
            let mut tracker = DirtyTracker::of_file(pagemap, vec![region], file)?;
            tracker.hold_with(uffd.as_fd(), hold)?;
            let tracker = Arc::new(Mutex::new(tracker));
            let paging = from.paging;
            let options = ServeOptions {
                // A microvm without a balloon discards nothing.
                once_resident: OnceResident::End,
                ..from.serve_options(watch)
            };
            let reader = from.generation.reader(Space::Memory)?;
            let server = PageServer::new(uffd, vec![region], Box::new(reader), options)?;
            let (counters, touched) = (server.counters(), server.touched_pages());
            let stop = StopHandle::new()?;
            let work: Attendance = Box::new(move || server.serve(&stop).into());
            Ok((Self { tracker, counters, touched, paging }, work))
        })
        .await?
    }

    pub(super) fn tracker(&self) -> Tracker {
        Arc::clone(&self.tracker)
    }

    pub(super) fn report(&self) -> RestoreReport {
        self.counters.report()
    }

    pub(super) fn paging(&self) -> Paging {
        self.paging
    }

    pub(super) fn working_set(&self) -> WorkingSet {
        self.touched.working_set()
    }

    /// A generation with everything written so far is published.
    pub(super) fn commit(&self) {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner).commit();
    }
}

/// Copies what a running guest wrote, again and again, until a round leaves little for the stop, or no longer gains on
/// the guest.
pub(super) fn write_ahead(mut into: SpaceWriter, memory: &File, tracker: &Tracker) -> Result<SpaceWriter> {
    let mut before = u64::MAX;
    for _ in 0..ROUNDS_MAX {
        let dirty = {
            let mut tracker = tracker.lock().unwrap_or_else(PoisonError::into_inner);
            let found = tracker.collect()?;
            // The first round takes what a snapshot that failed had found, too.
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

/// What is known of the pages that a guest wrote since the generation that it came from.
pub(super) enum Written {
    /// It came from none.
    All,
    Tracked(Tracker),
    /// Nothing: they are found by comparing.
    Unknown,
}

/// Writes the memory of a stopped machine: what the guest wrote, and was not written ahead.
pub(super) fn save_memory(mut into: SpaceWriter, memory: &GuestMemory, written: Written) -> Result<SavedMemory> {
    let file = || memory.fd().try_clone_to_owned().map(File::from).map_err(|e| Error::failed(READ)(e.into()));
    match written {
        Written::All => into.add_sparse(&file()?)?,
        Written::Unknown => into.add_compared(&file()?)?,
        Written::Tracked(tracker) => {
            let (at_once, held) = find_left(&tracker, into.stored_pages() > 0)?;
            let view = memory.map().map_err(|e| Error::failed(READ)(e.into()))?;
            into.add_dirty(&view, &at_once)?;
            if let Some(pages) = held {
                return Ok(SavedMemory::Held { pages, into });
            }
        }
    }
    Ok(SavedMemory::Written(into))
}

/// What a stopped guest wrote and was not written ahead: the pages to copy at once, and those that are held until the
/// guest, which is to go on if anything was written ahead, does.
fn find_left(tracker: &Tracker, goes_on: bool) -> Result<(Vec<PageRange>, Option<HeldPages>)> {
    let mut tracker = tracker.lock().unwrap_or_else(PoisonError::into_inner);
    // Before anything can fail: what is collected stays pending until it is committed.
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
fn mapping_of(pid: Pid, memory: &GuestMemory) -> io::Result<Region> {
    let inode = nix::sys::stat::fstat(memory.fd())?.st_ino;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let len_bytes = memory.len_bytes() as u64;
    let region = maps.lines().filter_map(parse_mapping).find(|mapping| mapping.inode == inode);
    match region {
        Some(Mapping { start, end, offset, .. }) if offset == 0 && end - start == len_bytes => {
            Ok(Region::new(start, len_bytes, 0))
        }
        Some(_) => Err(io::Error::other("the VMM has mapped a part of the guest's memory")),
        None => Err(io::Error::other("the VMM has not mapped the guest's memory")),
    }
}

struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    inode: u64,
}

/// A line of `/proc/PID/maps`: `start-end perms offset dev inode path`.
fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(fields.nth(1)?)?,
        inode: fields.nth(1)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_read_and_rubbish_is_not() {
        let line = "7f0a10000000-7f0a20000000 rw-s 00000000 00:01 1030  /memfd:wrenn-guest-memory (deleted)";
        let mapping = parse_mapping(line).unwrap();
        assert_eq!((mapping.start, mapping.end), (0x7f0a_1000_0000, 0x7f0a_2000_0000));
        assert_eq!((mapping.offset, mapping.inode), (0, 1030));
        for rubbish in ["", "x", "1-2", "g-h r 0 0 0", "1-2 rw-s zz 00:01 1"] {
            assert!(parse_mapping(rubbish).is_none(), "{rubbish}");
        }
    }
}
