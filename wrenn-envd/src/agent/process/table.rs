use std::{
    collections::{BTreeMap, HashMap},
    io,
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::Process;
use crate::{
    agent::sys,
    proto::process::{ProcessSelector, process_selector::Selector},
};

/// Every process that was started here and runs, and the one place that children are reaped in.
///
/// PID 1 inherits every orphan of the guest. There is one call that waits, [`Table::reap`], and it knows which children
/// somebody waits for; so no status is stolen, and no orphan stays.
#[derive(Debug, Default)]
pub(crate) struct Table {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    processes: BTreeMap<u32, Arc<Process>>,
    awaited: HashMap<u32, oneshot::Sender<ExitStatus>>,
}

impl Table {
    /// Starts `command`; the receiver gets its exit status.
    ///
    /// The lock is held meanwhile, so that a child cannot be reaped before it is awaited. `spawn` also waits for a child
    /// of its own when exec fails, which the lock keeps [`Table::reap`] away from.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<(Child, oneshot::Receiver<ExitStatus>)> {
        let mut state = self.lock();
        let child = command.spawn()?;
        let (sender, receiver) = oneshot::channel();
        state.awaited.insert(child.id(), sender);
        Ok((child, receiver))
    }

    pub(super) fn insert(&self, process: Arc<Process>) {
        self.lock().processes.insert(process.pid, process);
    }

    pub(super) fn remove(&self, process: &Arc<Process>) {
        let mut state = self.lock();
        // The number may be another process's by now.
        if state.processes.get(&process.pid).is_some_and(|found| Arc::ptr_eq(found, process)) {
            state.processes.remove(&process.pid);
        }
    }

    pub(super) fn list(&self) -> Vec<Arc<Process>> {
        self.lock().processes.values().cloned().collect()
    }

    /// The process that `selector` names, by number or by tag.
    pub(super) fn find(&self, selector: &ProcessSelector) -> Option<Arc<Process>> {
        let state = self.lock();
        match selector.selector.as_ref()? {
            Selector::Pid(pid) => state.processes.get(pid).cloned(),
            Selector::Tag(tag) => {
                state.processes.values().find(|process| process.tag.as_deref() == Some(tag.as_str())).cloned()
            }
        }
    }

    /// Reaps for as long as the agent lives.
    pub(crate) async fn reap_for_ever(&self) -> io::Result<()> {
        let mut child_signals = signal(SignalKind::child())?;
        loop {
            self.reap()?;
            if child_signals.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// Takes the status of every child that has ended: to whoever awaits it, or to nobody.
    fn reap(&self) -> io::Result<()> {
        loop {
            let mut state = self.lock();
            let Some((pid, status)) = sys::wait_any()? else { return Ok(()) };
            if let Some(process) = state.processes.get(&pid) {
                process.ended.store(true, Ordering::Release);
            }
            if let Some(waiter) = state.awaited.remove(&pid) {
                let _ = waiter.send(status);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
