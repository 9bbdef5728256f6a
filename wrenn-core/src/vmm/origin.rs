//! Where a machine's memory came from.

use std::sync::Arc;

use wrenn_snapshot::{PageServer, RestoreReport as MemoryReport, ServeCounters, TouchedPages, WorkingSet};

use crate::vmm::paging::{Paging, RestoreReport};
use crate::vmm::phases::{RestorePhases, RestoreSteps};
use crate::vmm::tracking::Tracking;

/// Where a machine's memory came from.
#[derive(Debug)]
pub(super) enum Origin {
    /// The machine was booted, and the guest wrote all of its memory.
    Booted,
    /// A page server provides the memory.
    Served(Served),
    /// The memory was copied before the guest ran.
    Copied,
    /// The memory is a file that other machines map too.
    Mapped,
}

/// A page server, as it is seen while it serves.
#[derive(Debug)]
pub(super) struct Served {
    counters: Arc<ServeCounters>,
    touched: Arc<TouchedPages>,
    paging: Paging,
}

impl Served {
    pub(super) fn by(server: &PageServer, paging: Paging) -> Self {
        Self { counters: server.counters(), touched: server.touched_pages(), paging }
    }
}

impl Origin {
    /// What the restore has done so far; `None` for a machine that was booted.
    pub(super) fn report(&self, phases: RestorePhases, tracking: Tracking) -> Option<RestoreReport> {
        let (paging, memory) = match self {
            Self::Booted => return None,
            Self::Served(served) => (served.paging, served.counters.report()),
            Self::Copied => (Paging::Eager, MemoryReport::default()),
            Self::Mapped => (Paging::Mapped, MemoryReport::default()),
        };
        Some(RestoreReport { paging, tracking, phases, steps: RestoreSteps::default(), memory })
    }

    /// The pages that the guest touched, in order, as far as they were recorded.
    pub(super) fn working_set(&self) -> Option<WorkingSet> {
        match self {
            Self::Served(served) => Some(served.touched.working_set()),
            Self::Booted | Self::Copied | Self::Mapped => None,
        }
    }
}
