//! How a page server works.

use std::os::fd::OwnedFd;

use crate::{
    error::{Error, Result},
    page::PAGE_BYTES_U64,
    working_set::WorkingSet,
};

/// How a page server works.
#[derive(Debug)]
pub struct ServeOptions {
    /// How much to put in place around a page that is touched, in bytes, aligned to itself; at most 1 MiB. 64 KiB by
    /// default. More makes a restore faster that touches pages near each other, and uses more memory.
    // What a touched page costs in the mean, in microseconds, from a stored generation in the page cache, in another
    // process, on two processors; and the wait that 99 in 100 touches of the last guest stay under. One run of
    // benches/fault_around.rs:
    //
    //     window                     4 KiB  16 KiB  32 KiB  64 KiB  256 KiB  1 MiB
    //     all pages, in order         12.8     4.7     3.4     2.7      2.3    2.1
    //     all pages, no order         11.9     5.3     3.8     3.2      2.5    2.4
    //     every 16th page, no order   12.8    17.7    22.9    29.9     37.1   35.8
    //     its 99th percentile           45      59      72     104      199    616
    //
    // At 64 KiB nine tenths of the gain are made. A page whose neighbours nobody wants costs 17 us more than alone, and
    // each neighbour that is wanted saves some 9, so two of fifteen pay for all. Beyond it waits grow faster than the
    // gain. Installing the page alone first, and its neighbours once its thread runs, was no faster: the thread's next
    // fault waited for them.
    pub fault_around_bytes: u32,
    /// How often a page is read before the server gives up, at least 1. 3 by default. Damage is not tried again.
    pub read_attempts_max: u32,
    /// A descriptor that becomes readable when the VMM dies, such as its pidfd. None by default; without one, the
    /// death of the VMM goes unnoticed until the server is stopped.
    pub watch: Option<OwnedFd>,
    /// The process whose threads fault, by its id as this process has it. While one thread of it waits for page after page, the
    /// server and that thread are bound to one processor, so that a fault wakes no other: a quarter of the wait and half of the
    /// processor time where others are idle (benches/fault_4k.rs). Several that fault at once are left where they are, and all
    /// is as before a millisecond after the last fault. It takes a descriptor with
    /// [`Features::THREAD_ID`](crate::Features::THREAD_ID), and the right to change where that process's threads run; without
    /// either nobody is bound. None by default.
    pub affinity: Option<u32>,
    /// How it becomes known what the guest writes. Asynchronously by default.
    pub tracking: Tracking,
    /// How many of the pages that the guest touches are [recorded](crate::PageServer::touched_pages), at most. None by
    /// default. Costs a lock that is free for each fault, and 8 bytes for each run of pages.
    pub record_pages_max: u32,
    /// Pages to put in place between faults, in this order. None by default. A fault that comes
    /// meanwhile waits for one chunk of it at most: four times as long as alone, in the mean.
    pub prefetch: Option<WorkingSet>,
    /// What becomes of the pages that neither a fault nor the prefetch asks for. They stay away by default.
    pub populate: Populate,
    /// What to do once every page is in place. The server goes on by default.
    pub once_resident: OnceResident,
}

/// How it becomes known what a guest writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tracking {
    /// The kernel marks the pages by itself, and a [`DirtyTracker`](crate::DirtyTracker) finds them. It takes a
    /// descriptor with [`Features::SERVE_AND_TRACK`](crate::Features::SERVE_AND_TRACK).
    #[default]
    Async,
    /// The first write to each page waits for the server, and its [tracker](crate::PageServer::tracker) finds the page.
    /// It takes a descriptor without asynchronous protection, such as one with
    /// [`Features::SERVE_AND_TRACK_SYNC`](crate::Features::SERVE_AND_TRACK_SYNC), and one round trip for each page; a guest
    /// that writes in order waits for one in sixteen.
    Sync,
    /// It does not, or the VMM knows. All pages are installed writable.
    Untracked,
}

/// What becomes of pages that nobody asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Populate {
    /// They stay away.
    #[default]
    OnDemand,
    /// Once the prefetch is done they are put in place, in order and between faults. In the end the whole memory is
    /// resident, zeros included.
    InBackground {
        /// The most that is put in place a second, at least 1. It bounds the share of a processor that is taken from
        /// the guest: some 2 GB/s is all of one.
        bytes_per_second: u64,
    },
}

/// What a server does once every page is in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnceResident {
    /// It waits for pages that are discarded and touched again.
    #[default]
    Serve,
    /// It ends with [`EndReason::AllResident`](crate::EndReason::AllResident). For a guest whose memory nobody
    /// discards: a page that goes missing later is waited for in vain. A descriptor that
    /// [reports discards](crate::Features::EVENT_REMOVE) or protects synchronously needs somebody to listen, so its
    /// server serves on, and lets go of the source alone.
    End,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            fault_around_bytes: 64 << 10,
            read_attempts_max: 3,
            watch: None,
            affinity: None,
            tracking: Tracking::default(),
            record_pages_max: 0,
            prefetch: None,
            populate: Populate::default(),
            once_resident: OnceResident::default(),
        }
    }
}

impl ServeOptions {
    pub(crate) fn check(&self) -> Result<()> {
        let rate_is_zero = self.populate == Populate::InBackground { bytes_per_second: 0 };
        if self.fault_around_bytes > FAULT_AROUND_BYTES_MAX || self.read_attempts_max == 0 || rate_is_zero {
            return Err(Error::invalid("a page server's option is out of range"));
        }
        Ok(())
    }

    pub(crate) fn fault_around_pages(&self) -> u32 {
        u32::try_from(u64::from(self.fault_around_bytes) / PAGE_BYTES_U64).unwrap_or(1).max(1)
    }
}

/// 1 MiB. Beyond it, a page is no cheaper and the guest waits for more.
pub(crate) const FAULT_AROUND_BYTES_MAX: u32 = 1 << 20;
