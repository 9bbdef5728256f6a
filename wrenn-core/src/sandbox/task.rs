//! The task that owns a running sandbox's guest.
//!
//! ```text
//!  start ─▶ Running ──serve──▶ Saving ──┬─ pause ──────────────▶ Paused
//!             ▲ │                       └─ checkpoint, fork, snap-
//!             │ │                          shot, or a failure ─┐
//!             │ └─ kill, time-to-live, VM's end, last handle   │
//!             │    dropped ──▶ end ──▶ Ended                   │
//!             └────────────────────── go_on ───────────────────┘
//! ```
//!
//! Requests are served one after another, so of two pauses the second is refused. A kill is not a request: it stops the
//! request that is being served. The end of a time-to-live that kills does the same.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use wrenn_envd::InitRequest;
use wrenn_net::NetworkPolicy;
use wrenn_snapshot::Generation;

use crate::clock::unix_ms;
use crate::error::{Error, Result, chain};
use crate::guest::Guest;
use crate::guest::then::Then;
use crate::id::TemplateName;
use crate::network::publish::Publications;
use crate::runtime::blocking;
use crate::sandbox::event::{Events, HostEventKind};
use crate::sandbox::inbox::{Inbox, Urgent, Wake};
use crate::sandbox::registry::Premises;
use crate::sandbox::request::{Reply, Request};
use crate::sandbox::sleepers::Sleepers;
use crate::sandbox::template::{Taken, Template};
use crate::site::Site;
use crate::site::lock::FileLock;
use crate::site::record;
use crate::site::records::PausedRecord;
use crate::state::{Exit, Fixed, Life, OnExpiry, SandboxState};

pub(super) struct Task {
    site: Arc<Site>,
    events: Events,
    /// Gone with the last handle of the host.
    sleepers: Weak<Sleepers>,
    guest: Guest,
    published: Arc<Publications>,
    fixed: Fixed,
    /// The lock of a sandbox that has a pause on disk, held while the sandbox runs.
    lock: Option<FileLock>,
    life: watch::Sender<Life>,
    records: Arc<Mutex<Records>>,
    /// Why the guest could not go on after a save that failed.
    broken: Option<Error>,
    /// Whether the sandbox's end leaves generations to collect; known when the machine has ended.
    leaves_garbage: bool,
}

/// Whether a pause may still be recorded. After a kill, a pause that is under way writes no record.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Records {
    #[default]
    Kept,
    Removed,
}

impl Task {
    /// Owns `guest` from now on. `life` is told of the sandbox's state.
    pub(super) fn new(
        premises: Premises,
        guest: Guest,
        published: Arc<Publications>,
        fixed: Fixed,
        lock: Option<FileLock>,
        life: watch::Sender<Life>,
    ) -> Self {
        let Premises { site, events, sleepers } = premises;
        Self {
            site,
            events,
            sleepers,
            guest,
            published,
            fixed,
            lock,
            life,
            records: Arc::default(),
            broken: None,
            leaves_garbage: false,
        }
    }

    pub(super) async fn run(mut self, mut inbox: Inbox) {
        let mut failed_expiries = 0;
        loop {
            let exited = self.guest.machine.exited();
            let exit = match inbox.next(exited, failed_expiries).await {
                Wake::VmEnded => self.ended_by_itself(),
                Wake::Killed(reply) => return self.die(Exit::Killed, Some(reply)).await,
                Wake::Dropped => return self.end(Exit::Dropped).await,
                Wake::Expired if inbox.on_expiry() == OnExpiry::Kill => return self.die_of(Urgent::Expired).await,
                Wake::Expired => {
                    if failed_expiries == 0 {
                        self.events.tell(&self.fixed.id, HostEventKind::Expired);
                    }
                    self.fixed.lifetime = inbox.lifetime();
                    match inbox.urgent_or(self.pause_in_the_end(failed_expiries)).await {
                        Ok(exit) => {
                            failed_expiries += 1;
                            exit
                        }
                        Err(urgent) => return self.die_of(urgent).await,
                    }
                }
                Wake::Request(request) => {
                    self.fixed.lifetime = inbox.lifetime();
                    match inbox.urgent_or(self.serve(request)).await {
                        Ok(exit) => exit,
                        Err(urgent) => return self.die_of(urgent).await,
                    }
                }
            };
            if let Some(exit) = exit {
                return self.end(exit).await;
            }
        }
        // Requests that are still in the inbox are dropped with it, and their senders get an error.
    }

    /// Serves a request. The sandbox ends where this returns an exit.
    async fn serve(&mut self, request: Request) -> Option<Exit> {
        match request {
            Request::Pause(reply) => {
                let paused = self.pause().await;
                if paused.is_ok() {
                    self.fall_asleep().await;
                }
                let report = self.guest.save_report();
                self.answer(paused.map(|record| (record, report)), reply).await
            }
            Request::Fork(reply) => {
                let captured = self.capture_and_go_on().await;
                let inherited = captured.map(|generation| (generation, self.fixed_now()));
                self.answer(inherited, reply).await
            }
            Request::Checkpoint(reply) => {
                let recorded = self.checkpoint().await;
                self.answer(recorded, reply).await
            }
            Request::Snapshot(name, former, reply) => {
                let template = self.snapshot(&name, former).await;
                self.answer(template, reply).await
            }
            Request::Trust(authorities, reply) => {
                let init = InitRequest { ca_bundle: Some(authorities), ..InitRequest::default() };
                let trusted = self.guest.agent.init(&init).await.map_err(Error::agent("make its guest trust wrenn"));
                self.answer(trusted, reply).await
            }
            Request::Report(reply) => {
                let none = || Error::failed("report")("this machine was not restored".into());
                let report = self.guest.restore_report().ok_or_else(none);
                self.answer(report, reply).await
            }
            Request::SaveReport(reply) => {
                let report = Ok(self.guest.save_report());
                self.answer(report, reply).await
            }
        }
    }

    /// Sets the sandbox's state, and then answers. Returns why the sandbox does not go on, if it does not.
    async fn answer<T>(&mut self, result: Result<T>, reply: Reply<T>) -> Option<Exit> {
        let exit = self.over();
        match &exit {
            None => self.set_life(SandboxState::Running, None),
            Some(Exit::Paused) => {}
            Some(exit) => {
                self.end_machine().await;
                self.set_life(SandboxState::Ended, Some(exit.clone()));
            }
        }
        // The send fails where the caller was cancelled. The request was carried out all the same.
        let _ = reply.send(result);
        exit
    }

    /// Why the sandbox does not go on, if it does not.
    fn over(&mut self) -> Option<Exit> {
        if self.life.borrow().exit == Some(Exit::Paused) {
            return Some(Exit::Paused);
        }
        let console = || self.guest.machine.console().tail(CONSOLE_LINES);
        match self.broken.take() {
            Some(error) => Some(Exit::Broken { error: chain(&error), console: console() }),
            None => self.ended_by_itself(),
        }
    }

    fn ended_by_itself(&self) -> Option<Exit> {
        let exit = self.guest.machine.exited().borrow().as_ref().map(ToString::to_string)?;
        let console = self.guest.machine.console().tail(CONSOLE_LINES);
        tracing::warn!(id = %self.fixed.id, exit, console, "the VM ended");
        Some(Exit::VmEnded { exit, console })
    }

    async fn die_of(self, urgent: Urgent) {
        match urgent {
            Urgent::Kill(reply) => self.die(Exit::Killed, Some(reply)).await,
            Urgent::Expired => {
                self.events.tell(&self.fixed.id, HostEventKind::Expired);
                self.die(Exit::Expired, None).await;
            }
            Urgent::TooLong(after) => {
                let error = format!("a save did not end within {after:?}");
                let console = self.guest.machine.console().tail(CONSOLE_LINES);
                self.end(Exit::Broken { error, console }).await;
            }
        }
    }

    /// Ends the sandbox and removes its pause.
    async fn die(mut self, exit: Exit, reply: Option<Reply<()>>) {
        self.guest.kill().await;
        let forgotten = self.forget().await;
        self.end(exit).await;
        if let Some(reply) = reply {
            let _ = reply.send(forgotten);
        }
    }

    /// Ends the VM if it has not ended, and then sets the sandbox's state.
    async fn end(mut self, exit: Exit) {
        if self.life.borrow().exit.is_none() {
            self.end_machine().await;
            self.set_life(SandboxState::Ended, Some(exit.clone()));
        }
        if let Some(sleepers) = self.sleepers.upgrade() {
            sleepers.let_go();
        }
        let is_paused = exit == Exit::Paused;
        if !is_paused {
            self.events.tell(&self.fixed.id, HostEventKind::Ended { exit });
        }
        if !is_paused || self.leaves_garbage {
            self.site.tidy();
        }
    }

    async fn end_machine(&mut self) {
        self.end_guest().await;
        self.published.end().await;
        drop(self.lock.take());
    }

    /// Ends the VM after a pause. Ports that wake the sandbox stay open.
    async fn fall_asleep(&mut self) {
        self.end_guest().await;
        let ports = self.published.fall_asleep().await;
        self.set_life(SandboxState::Paused, Some(Exit::Paused));
        // A connection may wake it from here on.
        self.events.tell(&self.fixed.id, HostEventKind::Paused);
        if let Some(sleepers) = self.sleepers.upgrade() {
            sleepers.sleep(&self.fixed.id, ports);
        }
        // Last: whoever has the lock next finds the ports.
        drop(self.lock.take());
    }

    async fn end_guest(&mut self) {
        self.leaves_garbage = self.guest.leaves_garbage();
        self.guest.keep_working_set(&self.site);
        self.guest.kill().await;
    }

    fn set_life(&self, state: SandboxState, exit: Option<Exit>) {
        self.life.send_replace(Life { state, exit });
    }

    async fn pause(&mut self) -> Result<PausedRecord> {
        self.set_life(SandboxState::Saving, None);
        self.published.hold();
        let recorded = match self.guest.capture(&self.site, Then::Stay).await {
            Ok(generation) => self.record(generation).await,
            Err(error) => Err(error),
        };
        match recorded {
            Ok(record) => Ok(record),
            Err(error) => {
                let failed = self.go_on_after(error).await;
                self.published.go_on();
                failed
            }
        }
    }

    /// A save that failed leaves the sandbox running; a VM that cannot go on is ended.
    async fn go_on_after<T>(&mut self, error: Error) -> Result<T> {
        let error = self.guest.cause_of(error).await;
        if self.guest.is_halted()
            && let Err(fatal) = self.guest.go_on().await
        {
            tracing::error!(id = %self.fixed.id, error = &fatal as &dyn std::error::Error, "the guest cannot go on");
            self.broken = Some(fatal);
            self.guest.kill().await;
        }
        Err(error)
    }

    async fn record(&mut self, generation: Generation) -> Result<PausedRecord> {
        let site = Arc::clone(&self.site);
        if self.lock.is_none() {
            // Kept before the record is written: a kill that comes in between removes the record of a sandbox with a lock.
            let (site, id) = (Arc::clone(&site), self.fixed.id.clone());
            self.lock = blocking("lock the pause", move || site.data.try_lock(id.as_str())).await??;
        }
        let (fixed, paused_at_ms, records) = (self.fixed_now(), unix_ms(), Arc::clone(&self.records));
        blocking("record the pause", move || {
            let stored_bytes = generation.bytes_on_disk()?;
            let path = site.data.sandbox(&fixed.id);
            let record = PausedRecord { fixed, generation: generation.id(), paused_at_ms, stored_bytes };
            let records = records.lock().unwrap_or_else(PoisonError::into_inner);
            if *records == Records::Removed {
                return Err(Error::failed("record the pause")("the sandbox was killed meanwhile".into()));
            }
            let kept = site.keep(&path, &record);
            drop(generation);
            kept.map(|()| record)
        })
        .await?
    }

    /// The properties of the sandbox as they are now.
    fn fixed_now(&self) -> Fixed {
        let network = self.guest.egress.as_ref().map(|egress| NetworkPolicy::clone(&egress.policy()));
        let network = network.unwrap_or_else(|| self.fixed.network.clone());
        Fixed { network, published: self.published.list(), ..self.fixed.clone() }
    }

    /// Captures the guest, which goes on whether the capture succeeded or failed.
    async fn capture_and_go_on(&mut self) -> Result<Generation> {
        self.set_life(SandboxState::Saving, None);
        match self.guest.capture(&self.site, Then::GoOn).await {
            Ok(generation) => Ok(generation),
            Err(error) => self.go_on_after(error).await,
        }
    }

    async fn checkpoint(&mut self) -> Result<PausedRecord> {
        let generation = self.capture_and_go_on().await?;
        let record = self.record(generation).await?;
        self.events.tell(&self.fixed.id, HostEventKind::Checkpointed);
        Ok(record)
    }

    async fn snapshot(&mut self, name: &TemplateName, former: Taken) -> Result<Template> {
        let site = Arc::clone(&self.site);
        let (here, wanted) = (Arc::clone(&site), name.clone());
        let check = move || match former {
            Taken::Replaced => Template::check_no_image(&here, &wanted),
            Taken::Refused => Template::check_free(&here, &wanted),
        };
        blocking("look for the name", check).await??;
        let generation = self.capture_and_go_on().await?;
        let (taken, shape) = (name.clone(), self.guest.manifest.shape.clone());
        let defaults = self.fixed.defaults.clone();
        let keep = move || Template::publish(&site, &taken, &generation, &shape, &defaults, former);
        let template = blocking("record the snapshot", keep).await??;
        if former == Taken::Replaced {
            self.site.tidy();
        }
        self.events.tell(&self.fixed.id, HostEventKind::Snapshot { template: name.clone() });
        Ok(template)
    }

    /// Removes the sandbox's pause from disk, and makes sure that no other is recorded.
    async fn forget(&mut self) -> Result<()> {
        let (site, id) = (Arc::clone(&self.site), self.fixed.id.clone());
        let (has_record, records) = (self.lock.is_some(), Arc::clone(&self.records));
        let forget = blocking("remove the sandbox's pause", move || {
            *records.lock().unwrap_or_else(PoisonError::into_inner) = Records::Removed;
            if has_record {
                record::remove(&site.data.sandbox(&id))?;
                site.data.forget_lock(id.as_str());
            }
            Ok(())
        });
        let late =
            |_elapsed| Error::failed("remove the sandbox's pause in time; it goes on")("the disk is slow".into());
        tokio::time::timeout(FORGET_MAX, forget).await.map_err(late)??
    }

    /// Pauses a sandbox whose time-to-live has ended. After some failed attempts the sandbox ends without a pause.
    async fn pause_in_the_end(&mut self, failed: u32) -> Option<Exit> {
        tracing::info!(id = %self.fixed.id, "the sandbox's time is over");
        let error = match self.pause().await {
            Ok(_record) => {
                self.fall_asleep().await;
                return Some(Exit::Paused);
            }
            Err(error) => error,
        };
        tracing::warn!(id = %self.fixed.id, failed, error = &error as &dyn std::error::Error, "the pause failed");
        let over = self.over();
        if over.is_none() {
            self.set_life(SandboxState::Running, None);
        }
        let last = failed + 1 >= EXPIRY_TRIES;
        over.or_else(|| last.then(|| Exit::NotPaused { error: chain(&error) }))
    }
}

/// How many lines of the console the reason of an end has.
const CONSOLE_LINES: usize = 12;
/// How many attempts to pause a sandbox at the end of its time-to-live may fail before it is killed.
const EXPIRY_TRIES: u32 = 3;
/// Removing a small file takes a millisecond; a kill is not to wait for a disk that stands still.
const FORGET_MAX: Duration = Duration::from_secs(10);
