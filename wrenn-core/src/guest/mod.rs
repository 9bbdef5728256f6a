//! A guest: the machine, the network, the drive and the agent of one sandbox. The sandbox's task owns it.
//!
//! ```text
//!  Guest::boot ─────▶ (running, not yet anybody's) ── capture ──▶ a template's generation
//!  Guest::restore ──▶ running ── capture(GoOn) ──▶ running, or after a failure halted ── go_on ──▶ running
//!                             ── capture(Stay) ──▶ halted ── kill
//! ```
//!
//! Each part undoes itself when it is dropped (the VMM dies, the namespace goes with its descriptors, the drive never
//! had a name), so a step that fails, or a future that is dropped, leaves nothing.

mod berth;
mod boot;
mod capture;
pub(crate) mod drive;
mod flat;
mod lineage;
pub(crate) mod manifest;
pub(crate) mod restore;
mod stopwatch;
pub(crate) mod then;
mod working_set;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use wrenn_envd::{InitRequest, Timestamp};
use wrenn_net::Egress;
use wrenn_snapshot::GenerationId;

use crate::agent::client::AgentClient;
use crate::agent::connector::Connector;
use crate::error::{Error, Result};
use crate::guest::lineage::Lineage;
use crate::guest::manifest::Manifest;
use crate::guest::then::SaveReport;
use crate::vmm::exit::Exit;
use crate::vmm::machine::Machine;
use crate::vmm::paging::RestoreReport;
use crate::vmm::phases::RestoreSteps;
use crate::vmm::residents::Share;

pub(crate) struct Guest {
    pub(crate) machine: Box<dyn Machine>,
    pub(crate) agent: Arc<AgentClient>,
    drive: Arc<File>,
    /// Keeps the network: the agent's client only borrows it.
    _connector: Arc<dyn Connector>,
    /// Keeps the memory that clones share.
    _share: Option<Share>,
    /// Keeps the way out, which a sandbox's handles only borrow; `None` for a fake.
    pub(crate) egress: Option<Arc<Egress>>,
    /// The generation that the guest was restored from.
    restored_from: Option<GenerationId>,
    /// The generation that the guest's memory and drive were last equal to; `None` for a booted guest that was not
    /// captured.
    lineage: Option<Lineage>,
    pub(crate) manifest: Manifest,
    halted: bool,
    save_report: Option<SaveReport>,
    steps: RestoreSteps,
}

impl Guest {
    /// Whether the guest stands still, or may stand still after a stop that failed.
    pub(crate) fn is_halted(&self) -> bool {
        self.halted
    }

    /// Whether the end of this guest leaves generations that can be collected, once its last capture is recorded.
    pub(crate) fn leaves_garbage(&self) -> bool {
        self.lineage.as_ref().is_some_and(Lineage::leaves_garbage)
    }

    /// What the guest's restore has done so far; `None` for a guest that was booted.
    pub(crate) fn restore_report(&self) -> Option<RestoreReport> {
        self.machine.restore_report().map(|report| RestoreReport { steps: self.steps, ..report })
    }

    /// How long the last capture stopped the guest, and how long its steps took.
    pub(crate) fn save_report(&self) -> Option<SaveReport> {
        self.save_report
    }

    /// Ends the VM, and releases the generation that it depended on.
    pub(crate) async fn kill(&mut self) {
        self.agent.close();
        self.egress = None;
        self.machine.kill().await;
        self.lineage = None;
    }

    /// Does `work`, and fails at once when the VM ends before the work is done.
    async fn alive<T>(&self, during: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            result = work => result,
            ended = self.ended(during) => Err(ended),
        }
    }

    /// Waits for the VM's end, which is an error of whatever went on `during` it.
    async fn ended(&self, during: &'static str) -> Error {
        let mut exited = self.machine.exited();
        let exit = exited.wait_for(Option::is_some).await;
        let exit = exit.ok().and_then(|exit| exit.as_ref().map(Exit::to_string)).unwrap_or_default();
        Error::VmEnded { during, exit, console: self.machine.console().tail(12) }
    }

    /// Why a save failed. Where the VM has ended, that is why, and not whatever it was asked for then.
    pub(crate) async fn cause_of(&self, failed: Error) -> Error {
        match failed {
            Error::NoSpace { .. } | Error::VmEnded { .. } => failed,
            // Its end is known once its thread has reaped it.
            failed => timeout(REAPED_WITHIN, self.ended("save the guest")).await.unwrap_or(failed),
        }
    }

    /// A request to the agent that sets only the guest's clock.
    fn clock() -> InitRequest {
        InitRequest { timestamp: Some(Timestamp::now()), ..InitRequest::default() }
    }
}

const REAPED_WITHIN: Duration = Duration::from_millis(100);
