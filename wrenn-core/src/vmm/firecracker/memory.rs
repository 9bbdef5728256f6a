//! A restored machine's memory, which Firecracker hands over by its own protocol.
//!
//! ```text
//!  the VM's thread:  HandOver::receive ─▶ adopt ─▶ PageServer::new ─▶ Served ─▶ serve
//!  Firecracker:      PUT /snapshot/load ─▶ connects ─▶ touches memory ─▶ answers
//! ```
//!
//! Firecracker registers its memory for missing pages only, and tracks by itself what the guest writes.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use tokio::sync::oneshot;
use wrenn_snapshot::{EndReason, HandOver, PageServer, ServeOptions, Space, StopHandle, Tracking, adopt};

use crate::error::Result;
use crate::vmm::origin::Served;
use crate::vmm::parts::Restore;
use crate::vmm::process::{Attendance, Attended};

/// Tells the VM's thread to stop waiting, at the latest when this is dropped. So the thread never waits for a VMM that
/// is gone.
#[derive(Debug)]
pub(super) struct Leave(StopHandle);

impl Leave {
    pub(super) fn now(&self) {
        self.0.stop();
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.now();
    }
}

/// The work of the VM's thread, which reports when Firecracker has handed the memory over.
pub(super) fn attendance(
    listener: UnixListener,
    watch: OwnedFd,
    from: Restore,
) -> Result<(Attendance, Leave, oneshot::Receiver<Served>)> {
    let stop = StopHandle::new()?;
    let leave = Leave(stop.clone());
    let (tell, told) = oneshot::channel();
    let work = move || match HandOver::receive(&listener, &stop) {
        Ok(Some(handed)) => match server(handed, watch, from) {
            Ok((server, served)) => {
                // This fails where the machine was given up in the meantime, and then the stop has been sent already.
                let _ = tell.send(served);
                server.serve(&stop).into()
            }
            Err(error) => Attended::without_server(EndReason::Failed(error)),
        },
        Ok(None) => Attended::without_server(EndReason::Stopped),
        Err(error) => Attended::without_server(EndReason::Failed(error)),
    };
    Ok((Box::new(work), leave, told))
}

fn server(handed: HandOver, watch: OwnedFd, from: Restore) -> wrenn_snapshot::Result<(PageServer, Served)> {
    let HandOver { uffd, regions, .. } = handed;
    adopt(uffd.as_fd(), &regions, Tracking::Untracked)?;
    let options = ServeOptions { tracking: Tracking::Untracked, ..from.serve_options(watch) };
    let reader = from.generation.reader(Space::Memory)?;
    let server = PageServer::new(uffd, regions, Box::new(reader), options)?;
    let served = Served::by(&server, from.paging);
    Ok((server, served))
}
