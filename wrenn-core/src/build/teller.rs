//! The way of a build's events to who asked for it.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::build::event::{BuildEvent, BuildEventKind};

/// What is called with each event.
pub(super) type OnEvent = Box<dyn FnMut(BuildEvent) + Send>;

pub(super) struct Teller(Mutex<OnEvent>);

impl Teller {
    pub(super) fn new(on_event: OnEvent) -> Self {
        Self(Mutex::new(on_event))
    }

    pub(super) fn tell(&self, step: Option<usize>, kind: BuildEventKind) {
        let mut on_event = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        on_event(BuildEvent { at: SystemTime::now(), step, kind });
    }
}

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Teller").finish_non_exhaustive()
    }
}
