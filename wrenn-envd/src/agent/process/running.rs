//! A process that was started here, and the way of its output to whoever reads it.

use std::{
    os::unix::process::ExitStatusExt as _,
    pin::pin,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{
        oneshot::{self, error::RecvError},
        watch,
    },
    time::{Instant, sleep_until, timeout},
};

use super::{
    descendants,
    input::Input,
    journal::{Finish, Journal},
    moment::Moment,
    output::Outputs,
};
use crate::{
    agent::{
        cgroups::Leaf,
        sys::{self, SignalNumber},
    },
    proto::process::ProcessConfig,
};

/// A process that was started here.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) config: ProcessConfig,
    pub(super) tag: Option<String>,
    pub(super) input: Input,
    pub(super) journal: Arc<Journal>,
    pub(super) leaf: Option<Leaf>,
    pub(super) timed_out: AtomicBool,
    pub(super) ended: watch::Sender<bool>,
    /// Whether input came, and nobody has looked since.
    pub(super) was_asked: AtomicBool,
}

impl Process {
    /// Signals the process and everything in its group.
    pub(super) fn signal(&self, signal: SignalNumber) {
        // Once reaped the number may be another process's.
        if !self.has_ended() {
            // It can only have ended in the meantime.
            let _ = sys::signal_group(self.pid, signal);
        }
    }

    /// Kills everything that the process has started, wherever that is.
    pub(super) fn kill_all(&self) {
        // A kernel older than 5.14 has groups that cannot be killed.
        if self.leaf.as_ref().is_some_and(|leaf| leaf.kill().is_ok()) || self.has_ended() {
            return;
        }
        descendants::kill_tree(self.pid);
        let _ = sys::signal_group(self.pid, SignalNumber::KILL);
    }

    /// Whether it was reaped. Its output may still be on its way.
    pub(super) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    pub(super) fn note_end(&self) {
        self.ended.send_replace(true);
    }

    /// Waits until it has ended.
    pub(super) async fn end(&self) {
        // The sender is here.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Kills the process and all it has started, and remembers that its time was up.
    pub(super) fn time_out(&self) {
        // One that has ended in time, and whose output is still on its way, has ended in time.
        if self.has_ended() {
            return;
        }
        self.timed_out.store(true, Ordering::Release);
        self.kill_all();
    }

    /// Carries output to the journal until the process has ended and its output is all there. `moment` goes if the process
    /// outlives it. What others still write to afterwards is left in `outputs`.
    pub(super) async fn run(
        &self,
        outputs: &mut Outputs,
        exit: oneshot::Receiver<ExitStatus>,
        moment: &mut Option<Moment>,
    ) -> Finish {
        let mut exit = pin!(exit);
        let mut ended = None;
        if let Some(Moment { length, .. }) = moment {
            ended = timeout(*length, &mut exit).await.ok().map(|status| self.ended(status, outputs));
            moment.take_if(|_| ended.is_none());
        }
        while ended.as_ref().is_none_or(|ended| !outputs.are_drained(ended.grace_is_over)) {
            let has_room = self.journal.has_room();
            tokio::select! {
                status = &mut exit, if ended.is_none() => ended = Some(self.ended(status, outputs)),
                output = outputs.readable(), if has_room => {
                    let was_asked = self.was_asked.swap(false, Ordering::Relaxed);
                    output.carry(&self.journal, was_asked);
                }
                () = self.journal.room(), if !has_room => {}
                () = Ended::grace(ended.as_ref()) => {
                    if let Some(ended) = &mut ended {
                        ended.grace_is_over = true;
                    }
                }
            }
        }
        let status = ended.map_or_else(|| ExitStatus::from_raw(0), |ended| ended.status);
        Finish { status, timed_out: self.timed_out.load(Ordering::Acquire) }
    }

    fn ended(&self, status: Result<ExitStatus, RecvError>, outputs: &mut Outputs) -> Ended {
        self.note_end();
        outputs.note_what_is_left(&self.journal);
        Ended::new(status.unwrap_or_else(|_| ExitStatus::from_raw(0)))
    }
}

/// A process that has ended, and whose output may still come.
///
/// Its own output is all in the pipes by now, and is delivered in full. Somebody else who holds the pipes open, such as a
/// background process, gets [`GRACE`] to finish.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    grace_end: Instant,
    grace_is_over: bool,
}

impl Ended {
    fn new(status: ExitStatus) -> Self {
        Self { status, grace_end: Instant::now() + GRACE, grace_is_over: false }
    }

    /// Waits for the end of the grace, which is never for a process that runs.
    async fn grace(ended: Option<&Self>) {
        match ended {
            Some(Self { grace_end, grace_is_over: false, .. }) => sleep_until(*grace_end).await,
            _ => std::future::pending().await,
        }
    }
}

/// How long others may hold a process's output open after its end.
const GRACE: Duration = Duration::from_millis(200);
