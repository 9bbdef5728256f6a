//! The steps of making a sandbox, in order, as they begin.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::error::{Error, Result};

/// A step of [`Sandbox::create`](crate::Sandbox::create) or [`PausedSandbox::resume`](crate::PausedSandbox::resume).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// A template is booted, which happens once.
    Boot,
    /// The generation's headers are read and checked.
    Load,
    /// The network slot is made.
    Slot,
    /// The VMM is started and given its memory and device state.
    Machine,
    /// The writable drive is filled.
    Drive,
    /// The guest runs.
    Run,
    /// The agent makes the guest itself again: clock, randomness, identity, token.
    Agent,
    /// The sandbox is handed over.
    Ready,
}

impl Step {
    /// All steps of a create or a resume, in order; a template that is already booted has no [`Boot`](Self::Boot).
    pub const RESTORE: [Self; 7] =
        [Self::Load, Self::Slot, Self::Machine, Self::Drive, Self::Run, Self::Agent, Self::Ready];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boot => "boot the template",
            Self::Load => "load the snapshot",
            Self::Slot => "make the network slot",
            Self::Machine => "start the virtual machine",
            Self::Drive => "fill the drive",
            Self::Run => "let the guest run",
            Self::Agent => "renew the guest's identity",
            Self::Ready => "hand the sandbox over",
        })
    }
}

type Observe = dyn Fn(Step) -> io::Result<()> + Send + Sync;

/// Who is told of steps.
#[derive(Clone, Default)]
pub(crate) struct Observer(Option<Arc<Observe>>);

impl Observer {
    pub(crate) fn new(observe: impl Fn(Step) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observe)))
    }

    pub(crate) fn at(&self, step: Step) -> Result<()> {
        let Some(observe) = &self.0 else { return Ok(()) };
        observe(step).map_err(|e| Error::failed(step.to_string())(e.into()))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observer({})", if self.0.is_some() { "set" } else { "none" })
    }
}
