//! The task that owns a running sandbox's guest.
//!
//! ```text
//!  Task::start ─▶ restore ─▶ Running ──capture──▶ Saving ──┬─ pause ─────────▶ Paused
//!                              ▲ │                         └─ fork, snapshot,
//!                              │ │                            or a failure ──┐
//!                              │ └─ kill, time-to-live, VM's end, last       │
//!                              │    handle dropped ───────▶ Ended            │
//!                              └────────────── go_on ────────────────────────┘
//! ```
//!
//! Requests are served one after another, so two pauses are a pause and a refusal.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use wrenn_snapshot::Generation;

use crate::clock::unix_ms;
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::guest::then::Then;
use crate::id::TemplateName;
use crate::runtime::blocking;
use crate::sandbox::request::{Reply, Request};
use crate::sandbox::template::Template;
use crate::site::data_dir::FileLock;
use crate::site::records::PausedRecord;
use crate::site::{Site, record};
use crate::state::{Fixed, Lifetime, OnExpiry, SandboxState};
use crate::vmm::exit::Exit;

pub(super) struct Task {
    site: Arc<Site>,
    guest: Guest,
    fixed: Fixed,
    /// Held by whoever runs a sandbox that has a pause on disk.
    lock: Option<FileLock>,
    state: watch::Sender<SandboxState>,
    deadline: Option<Instant>,
}

/// Whether the task has anything left to own.
enum Next {
    Running,
    Over,
}

impl Task {
    /// Owns `guest` from now on. The sender is told of the sandbox's state.
    pub(super) fn new(
        site: Arc<Site>,
        guest: Guest,
        fixed: Fixed,
        lock: Option<FileLock>,
        state: watch::Sender<SandboxState>,
    ) -> Self {
        let deadline = fixed.lifetime.map(|lifetime| Instant::now() + lifetime.ttl);
        Self { site, guest, fixed, lock, state, deadline }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut exited = self.guest.machine.exited();
        let mut next = Next::Running;
        while let Next::Running = next {
            let deadline = self.deadline;
            let expired = async move {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            next = tokio::select! {
                biased;
                exit = exit_of(&mut exited) => {
                    let console = self.guest.machine.console().tail(8);
                    tracing::warn!(id = %self.fixed.id, exit, console, "the VM ended");
                    self.end(SandboxState::Ended).await
                }
                request = inbox.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => self.end(SandboxState::Ended).await,
                },
                () = expired => self.expire().await,
            };
        }
        // What is still in the inbox is dropped with it, and whoever sent it is told so.
    }

    /// Ends the VM. Whoever waits for the state is told when it is gone.
    async fn end(&mut self, state: SandboxState) -> Next {
        self.guest.keep_working_set(&self.site);
        self.guest.kill().await;
        drop(self.lock.take());
        self.state.send_replace(state);
        Next::Over
    }

    async fn serve(&mut self, request: Request) -> Next {
        match request {
            Request::Pause(reply) => {
                let paused = self.pause().await;
                return self.settle(paused.is_ok().then_some(SandboxState::Paused), paused, reply).await;
            }
            Request::Kill(reply) => {
                let removed = self.forget();
                return self.settle(Some(SandboxState::Ended), removed, reply).await;
            }
            Request::Fork(reply) => {
                let captured = self.capture_and_go_on().await;
                let inherited = captured.map(|generation| (generation, self.fixed.clone()));
                return self.settle(None, inherited, reply).await;
            }
            Request::Snapshot(name, reply) => {
                let template = self.snapshot(&name).await;
                return self.settle(None, template, reply).await;
            }
            Request::SetTtl(ttl, reply) => {
                self.set_ttl(ttl);
                answer(reply, Ok(()));
            }
            Request::Report(reply) => {
                let report = self.guest.machine.restore_report();
                let none = || Error::failed("report")("this machine was not restored".into());
                answer(reply, report.ok_or_else(none));
            }
            Request::SaveReport(reply) => answer(reply, Ok(self.guest.save_report())),
            Request::Console(reply) => answer(reply, Ok(self.guest.machine.console().text())),
            Request::Pid(reply) => answer(reply, Ok(self.guest.machine.pid())),
        }
        Next::Running
    }

    /// Carries on, or ends in `end`; and answers when that is done.
    async fn settle<T>(&mut self, end: Option<SandboxState>, result: Result<T>, reply: Reply<T>) -> Next {
        let dead = self.guest.machine.exited().borrow().is_some();
        let next = match end.or_else(|| dead.then_some(SandboxState::Ended)) {
            Some(state) => {
                let leaves_garbage = self.guest.leaves_garbage();
                let over = self.end(state).await;
                let site = Arc::clone(&self.site);
                if state == SandboxState::Ended {
                    // A failed join is a panic, which was printed.
                    let _ = blocking("collect garbage", move || site.tidy()).await;
                } else if leaves_garbage {
                    // Nobody waits for it.
                    tokio::task::spawn_blocking(move || site.tidy());
                }
                over
            }
            None => {
                self.state.send_replace(SandboxState::Running);
                Next::Running
            }
        };
        answer(reply, result);
        next
    }

    async fn pause(&mut self) -> Result<PausedRecord> {
        self.state.send_replace(SandboxState::Saving);
        let recorded = match self.guest.capture(&self.site, Then::Stay).await {
            Ok(generation) => self.record(generation).await,
            Err(error) => Err(error),
        };
        match recorded {
            Ok(record) => Ok(record),
            Err(error) => self.go_on_after(error).await,
        }
    }

    /// A save that failed leaves the sandbox running; a VM that cannot go on is ended by the caller.
    async fn go_on_after<T>(&mut self, error: Error) -> Result<T> {
        if self.guest.is_halted()
            && let Err(fatal) = self.guest.go_on().await
        {
            tracing::error!(id = %self.fixed.id, error = &fatal as &dyn std::error::Error, "the guest cannot go on");
            self.guest.kill().await;
        }
        Err(error)
    }

    async fn record(&mut self, generation: Generation) -> Result<PausedRecord> {
        if self.lock.is_none() {
            self.lock = self.site.data.try_lock(self.fixed.id.as_str())?;
        }
        let record = PausedRecord {
            fixed: self.fixed.clone(),
            generation: generation.id(),
            paused_at_ms: unix_ms(),
            stored_bytes: generation.bytes_on_disk()?,
        };
        let (site, path) = (Arc::clone(&self.site), self.site.data.sandbox(&self.fixed.id));
        blocking("record the pause", move || {
            let kept = site.keep(&path, &record);
            drop(generation);
            kept.map(|()| record)
        })
        .await?
    }

    /// Captures, and goes on whatever came of it.
    async fn capture_and_go_on(&mut self) -> Result<Generation> {
        self.state.send_replace(SandboxState::Saving);
        match self.guest.capture(&self.site, Then::GoOn).await {
            Ok(generation) => {
                self.state.send_replace(SandboxState::Running);
                Ok(generation)
            }
            Err(error) => self.go_on_after(error).await,
        }
    }

    async fn snapshot(&mut self, name: &TemplateName) -> Result<Template> {
        Template::check_free(&self.site, name)?;
        let generation = self.capture_and_go_on().await?;
        let (site, name, shape) = (Arc::clone(&self.site), name.clone(), self.guest.manifest.shape.clone());
        let keep = move || Template::name_snapshot(&site, &name, &generation, &shape);
        blocking("record the snapshot", keep).await?
    }

    fn forget(&mut self) -> Result<()> {
        if self.lock.is_some() {
            record::remove(&self.site.data.sandbox(&self.fixed.id))?;
            self.site.data.forget_lock(self.fixed.id.as_str());
        }
        Ok(())
    }

    fn set_ttl(&mut self, ttl: Option<Duration>) {
        let on_expiry = self.fixed.lifetime.map_or(OnExpiry::Kill, |lifetime| lifetime.on_expiry);
        self.fixed.lifetime = ttl.map(|ttl| Lifetime { ttl, on_expiry });
        self.deadline = ttl.map(|ttl| Instant::now() + ttl);
    }

    async fn expire(&mut self) -> Next {
        self.deadline = None;
        let on_expiry = self.fixed.lifetime.map_or(OnExpiry::Kill, |lifetime| lifetime.on_expiry);
        tracing::info!(id = %self.fixed.id, ?on_expiry, "the sandbox's time is over");
        let (reply, outcome) = oneshot::channel();
        let next = match on_expiry {
            OnExpiry::Kill => {
                let removed = self.forget();
                let (reply, _unread) = oneshot::channel();
                self.settle(Some(SandboxState::Ended), removed, reply).await
            }
            OnExpiry::Pause => {
                let paused = self.pause().await;
                self.settle(paused.is_ok().then_some(SandboxState::Paused), paused, reply).await
            }
        };
        if let Ok(Err(error)) = outcome.await {
            // It would never end if nobody tried again.
            tracing::warn!(id = %self.fixed.id, error = &error as &dyn std::error::Error, "the pause failed; trying again");
            self.deadline = Some(Instant::now() + EXPIRY_RETRY);
        }
        next
    }
}

/// Waits for the VM's end.
async fn exit_of(exited: &mut watch::Receiver<Option<Exit>>) -> String {
    let exit = exited.wait_for(Option::is_some).await;
    exit.ok().and_then(|exit| exit.as_ref().map(Exit::to_string)).unwrap_or_default()
}

fn answer<T>(reply: Reply<T>, result: Result<T>) {
    // Whoever asked may have gone; what was asked for is done all the same.
    let _ = reply.send(result);
}

const EXPIRY_RETRY: Duration = Duration::from_secs(10);
