//! The memory of a machine that maps what its generation has in memory, as all of its clones do.
//!
//! QEMU maps its memory shared, or its migration would write out all of it. So once QEMU answers, and before it loads
//! anything, its mapping is replaced by a private one. Only the VM's thread may do that, since it has to trace QEMU; nothing
//! has to be served afterwards.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::unistd::Pid;
use tokio::sync::oneshot;
use tokio::time::timeout;
use wrenn_snapshot::{DirtyTracker, EndReason, MemoryFile, arm_private};

use crate::error::{Error, Result};
use crate::patience::patient;
use crate::vmm::inject;
use crate::vmm::launch::Userfaultfds;
use crate::vmm::memory::GuestMemory;
use crate::vmm::process::{Attended, Process};
use crate::vmm::qemu::lazy::{Found, mapping_of};

/// How a clone's memory is read, and how the pages are found that it wrote.
pub(super) struct ClonedMemory {
    pub(super) found: Found,
    pub(super) memory: MemoryFile,
}

impl ClonedMemory {
    /// Has a VMM that runs no guest yet map `shared`, which it was given, where it has `memory` so far.
    pub(super) async fn map(
        process: &mut Process,
        uffds: Userfaultfds,
        memory: &Arc<GuestMemory>,
        shared: OwnedFd,
    ) -> Result<Self> {
        let (tell, told) = oneshot::channel();
        let (pid, replaced) = (process.pid(), Arc::clone(memory));
        process.attend(Box::new(move || match map(pid, uffds, &replaced, &shared) {
            Ok(cloned) => {
                // Nobody listens where the restore was given up, and then the VMM is killed.
                let _ = tell.send(Ok(cloned));
                Attended::without_server(EndReason::AllResident)
            }
            Err(error) => {
                let _ = tell.send(Err(error));
                Attended::without_server(EndReason::Stopped)
            }
        }));
        match timeout(patient(MAP_TIMEOUT), told).await {
            Ok(Ok(mapped)) => mapped,
            Ok(Err(_)) => Err(process.ended(WHAT, "its thread is gone").await),
            Err(_) => {
                let why = format!("QEMU could not be stopped within {MAP_TIMEOUT:?}");
                Err(process.give_up(WHAT, why).await)
            }
        }
    }
}

/// Runs on the VM's thread.
fn map(pid: Pid, uffds: Userfaultfds, memory: &GuestMemory, shared: &OwnedFd) -> Result<ClonedMemory> {
    let failed = |error: std::io::Error| Error::failed(WHAT)(error.into());
    let region = mapping_of(pid, memory).map_err(failed)?;
    let theirs = number_of(pid, shared).map_err(failed)?;
    inject::map_private(pid, region.host_addr, region.len_bytes, theirs).map_err(failed)?;
    // What the VMM wrote while it started.
    memory.clear().map_err(failed)?;
    arm_private(uffds.served.as_fd(), &region)?;
    let of_process = |name: &str| File::open(format!("/proc/{pid}/{name}")).map_err(failed);
    let memory = MemoryFile::private(of_process("mem")?, region)?;
    let mut tracker = DirtyTracker::of_private(of_process("pagemap")?, region, memory.clone())?;
    // It keeps the first descriptor open as well, without which writes would be marked no more.
    tracker.hold_with(uffds.served.as_fd(), uffds.hold)?;
    Ok(ClonedMemory { found: Found::Tracked(Arc::new(Mutex::new(tracker))), memory })
}

/// The number by which a process knows the file of this program's descriptor: QEMU does not tell it.
fn number_of(pid: Pid, file: &OwnedFd) -> io::Result<RawFd> {
    let file_of = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let wanted = file_of(File::from(file.try_clone()?).metadata()?);
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        // One that was closed meanwhile is not the one that is looked for.
        let is_it = std::fs::metadata(entry.path()).is_ok_and(|metadata| file_of(metadata) == wanted);
        if let (true, Some(number)) = (is_it, entry.file_name().to_str().and_then(|name| name.parse().ok())) {
            return Ok(number);
        }
    }
    Err(io::Error::other("QEMU has not kept the memory that it was given"))
}

const WHAT: &str = "map the memory of all clones";
/// It takes less than a millisecond.
const MAP_TIMEOUT: Duration = Duration::from_secs(20);
