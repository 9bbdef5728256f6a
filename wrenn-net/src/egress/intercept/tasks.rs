//! The tasks of one connection, which end with it.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::rt::Executor;
use tokio::task::JoinSet;

/// Runs what hyper splits off from a connection of HTTP/2, until the last of this is dropped.
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<JoinSet<()>>>);

/// Ends all tasks when it is dropped: they hold the executor themselves.
#[derive(Debug)]
pub(super) struct EndOfTasks(Tasks);

impl Tasks {
    pub(super) fn ended_with_this(&self) -> EndOfTasks {
        EndOfTasks(self.clone())
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

impl Drop for EndOfTasks {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}
