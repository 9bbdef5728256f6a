//! `PAGEMAP_SCAN` (Linux 6.7): which pages of a process were written since they were last protected.
//!
//! ```text
//! Scan::written ─ rearm ─► run ─► PAGEMAP_SCAN ─► address ranges ─┐
//!                           ▲                                     │ until the whole range is walked
//!                           └─────────────────────────────────────┘
//! ```
#![expect(unsafe_code, reason = "ioctl(2) has no safe wrapper")]

use std::{fs::File, ops::Range, os::fd::AsRawFd};

use nix::errno::Errno;

use crate::error::{Error, Result};

/// A scan of addresses for pages that were written.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    range: Range<u64>,
    flags: u64,
    /// Only pages that are not the file's which is mapped.
    is_private: bool,
}

impl Scan {
    /// Looks for the written pages of `range`, which is page-aligned and protected asynchronously.
    pub(crate) fn written(range: Range<u64>) -> Self {
        Self { range, flags: PM_SCAN_CHECK_WPASYNC, is_private: false }
    }

    /// Looks for the pages of `range` that are not protected. It cannot re-arm.
    pub(crate) fn unprotected(range: Range<u64>) -> Self {
        Self { range, flags: 0, is_private: false }
    }

    /// Leaves out what is the page of a file that `range` maps privately, or was never touched: neither was written.
    pub(crate) fn private(mut self) -> Self {
        self.is_private = true;
        self
    }

    /// Protects each page again in the same step that reports it, so that no write comes between.
    pub(crate) fn rearm(mut self) -> Self {
        self.flags |= PM_SCAN_WP_MATCHING;
        self
    }

    /// Walks the whole range and gives each run of written pages to `found`, in ascending order.
    ///
    /// `pagemap` is `/proc/<pid>/pagemap` of the process. What was found before an error has been given to `found`,
    /// and, if re-arming, is reported by no later scan.
    pub(crate) fn run(&self, pagemap: &File, mut found: impl FnMut(Range<u64>)) -> Result<()> {
        let mut runs = vec![PageRegion::default(); RUNS_AT_ONCE];
        let mut cursor = self.range.start;
        while cursor < self.range.end {
            let (count, walked) = self.step(pagemap, cursor, &mut runs)?;
            runs[..count].iter().for_each(|run| found(run.start..run.end));
            if walked <= cursor {
                let stuck = std::io::Error::other("the walk does not advance");
                return Err(Error::kernel("PAGEMAP_SCAN", stuck));
            }
            cursor = walked;
        }
        Ok(())
    }

    /// Which pages it looks for.
    fn categories(&self) -> PmScanArg {
        match self.is_private {
            false => PmScanArg { category_mask: PAGE_IS_WRITTEN, ..PmScanArg::default() },
            true => PmScanArg {
                category_mask: PAGE_IS_WRITTEN | PAGE_IS_FILE,
                category_inverted: PAGE_IS_FILE,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                ..PmScanArg::default()
            },
        }
    }

    /// One call: how many runs it found, and the address that it has got to.
    fn step(&self, pagemap: &File, start: u64, runs: &mut [PageRegion]) -> Result<(usize, u64)> {
        loop {
            let mut request = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                flags: self.flags,
                start,
                end: self.range.end,
                vec: runs.as_mut_ptr() as u64,
                vec_len: runs.len() as u64,
                return_mask: PAGE_IS_WRITTEN,
                ..self.categories()
            };
            // SAFETY: the kernel writes at most `vec_len` records at `vec`, which is `runs`, and the fields of
            // `request`. Re-arming changes protection in the process that `pagemap` belongs to, not what is in it.
            match unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut request) } {
                Ok(count) => {
                    let count = usize::try_from(count).unwrap_or(0).min(runs.len());
                    return Ok((count, request.walk_end));
                }
                Err(Errno::EINTR) if request.walk_end <= start => {}
                Err(errno) => return Err(Error::kernel("PAGEMAP_SCAN", errno)),
            }
        }
    }
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

mod request {
    //! A module of its own, since the macro makes the request public.
    use super::PmScanArg;

    nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PmScanArg);
}
use request::pagemap_scan;

const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// 24 KiB: scattered writes take few calls, and the buffer stays in the processor's cache.
const RUNS_AT_ONCE: usize = 1024;
