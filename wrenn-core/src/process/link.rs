//! Which sandbox a process is in: another one after each pause.

use std::sync::{Mutex, PoisonError};

use crate::sandbox::handle::Sandbox;

/// What a child and its halves share.
#[derive(Debug)]
pub(super) struct Link(Mutex<Sandbox>);

impl Link {
    pub(super) fn new(sandbox: &Sandbox) -> Self {
        Self(Mutex::new(sandbox.clone()))
    }

    pub(super) fn sandbox(&self) -> Sandbox {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn replace(&self, sandbox: &Sandbox) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = sandbox.clone();
    }
}
