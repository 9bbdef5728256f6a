//! What a machine is given at its start.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use wrenn_snapshot::{Generation, Populate, ServeOptions, WorkingSet};

use crate::network::slot::Plug;
use crate::vmm::identity::Identity;
use crate::vmm::memory::SharedMemory;
use crate::vmm::paging::Paging;
use crate::vmm::tracking::Tracking;

/// The files and the network of a machine. All of them are open already, so the VMM needs no right to open them.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) base: File,
    pub(crate) drive: File,
    pub(crate) plug: Plug,
    pub(crate) identity: Option<Identity>,
    /// All of a generation's memory, for [`Paging::Mapped`] with Firecracker.
    pub(crate) flat: Option<File>,
}

/// What a machine is restored from, and how.
#[derive(Debug)]
pub(crate) struct Restore {
    pub(crate) generation: Generation,
    pub(crate) paging: Paging,
    pub(crate) tracking: Tracking,
    /// The pages that an earlier restore of the generation touched, to be read ahead.
    pub(crate) working_set: Option<WorkingSet>,
    /// All of its memory, where QEMU's clones share it.
    pub(crate) shared: Option<Arc<SharedMemory>>,
}

impl Restore {
    /// How a page server is to serve the memory. `watch` tells the end of the VMM.
    pub(super) fn serve_options(&self, watch: OwnedFd) -> ServeOptions {
        ServeOptions {
            watch: Some(watch),
            prefetch: self.working_set.clone(),
            record_pages_max: if self.working_set.is_none() { RECORD_PAGES_MAX } else { 0 },
            populate: match self.paging {
                Paging::Populate => Populate::InBackground { bytes_per_second: POPULATE_BYTES_PER_SECOND },
                Paging::Lazy | Paging::OnDemand | Paging::Eager | Paging::Mapped => Populate::OnDemand,
            },
            ..ServeOptions::default()
        }
    }
}

/// What a machine boots.
#[derive(Debug)]
pub(crate) struct BootMedia {
    pub(crate) kernel: File,
    pub(crate) initramfs: File,
}

/// What is touched first is what the next restore wants first; 48 MiB hold what a command or two need.
const RECORD_PAGES_MAX: u32 = 12 * 1024;
/// A quarter of a processor, and two seconds for 1 GiB.
const POPULATE_BYTES_PER_SECOND: u64 = 512 << 20;
