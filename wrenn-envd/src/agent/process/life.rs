//! A process's life, from its start to its end. No connection owns it.

use std::sync::Arc;

use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{
    journal::Reader,
    launch::{Launch, LaunchError, Launched},
    moment::{Moment, Over},
    running::Process,
    table::Table,
};
use crate::agent::{cgroups::Groups, freezer::Beginning};

/// A process that is to be started, and to live.
pub(super) struct Start {
    pub(super) table: Arc<Table>,
    pub(super) groups: Arc<Groups>,
    pub(super) launch: Launch,
    /// When it is killed.
    pub(super) deadline: Option<Instant>,
    /// Whether its caller waits for its end alone, and it ends with a caller who gives up before the answer has begun.
    pub(super) waits_for_end: bool,
    /// Keeps the guest from being frozen before the process runs.
    pub(super) beginning: Beginning,
}

/// What the caller gets of a process that has begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) process: Arc<Process>,
    /// Attached before there was any output.
    pub(super) reader: Reader,
    /// For a caller who waits for the end alone: when not to wait any longer.
    pub(super) over: Option<Over>,
}

impl Start {
    /// Starts it, tells `begun`, and stays with it until it has ended.
    pub(super) async fn run(self, begun: oneshot::Sender<Result<Begun, LaunchError>>) {
        let Self { table, groups, launch, deadline, waits_for_end, beginning } = self;
        let launched = launch.spawn(&table, &groups).await;
        drop(beginning);
        let launched = match launched {
            Ok(launched) => launched,
            // Whoever has left need not know.
            Err(error) => return drop(begun.send(Err(error))),
        };
        let process = launched.process.clone();
        let reader = process.journal.attach_from_the_start();
        let (moment, over) = waits_for_end.then(|| Moment::of(launched.took)).unzip();
        if begun.send(Ok(Begun { process: process.clone(), reader, over })).is_err() && waits_for_end {
            // Nobody knows a number to kill it by.
            process.kill_all();
        }
        live(&table, launched, deadline, moment).await;
        if let Some(leaf) = &process.leaf {
            // Nobody waits for that: the end is told first.
            tokio::task::yield_now().await;
            groups.retire(leaf);
        }
    }
}

/// Runs a process to its end, or to its deadline.
async fn live(table: &Table, launched: Launched, deadline: Option<Instant>, mut moment: Option<Moment>) {
    let Launched { process, mut outputs, exit, .. } = launched;
    let finish = {
        let running = process.run(&mut outputs, exit, &mut moment);
        tokio::pin!(running);
        tokio::select! {
            finish = &mut running => finish,
            () = until(deadline) => {
                process.time_out();
                running.await
            }
        }
    };
    // First, so that whoever hears of the end finds it gone.
    table.retire(&process);
    process.journal.finish(finish);
    table.read_on(outputs);
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
