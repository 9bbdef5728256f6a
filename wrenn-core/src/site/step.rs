//! The steps of the start of a sandbox, in order, and the function that is told of each as it begins.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::error::{Error, Result};

/// A step of [`Sandbox::create`](crate::Sandbox::create), [`PausedSandbox::resume`](crate::PausedSandbox::resume) or
/// the start of a child of [`Sandbox::fork`](crate::Sandbox::fork), as
/// [`HostBuilder::on_step`](crate::HostBuilder::on_step) is told of it. Its `Display` tells what is done, for instance
/// `start the virtual machine`.
///
/// ```
/// use wrenn_core::{Host, Step};
///
/// let builder = Host::builder().on_step(|step| {
///     println!("{step}");
///     Ok(())
/// });
/// assert_eq!(Step::Slot.to_string(), "make the network slot");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// An image is booted, which happens once for each machine shape.
    Boot,
    /// The headers of the stored snapshot are read and checked. A fork's child does not have this step.
    Load,
    /// The sandbox's network is made.
    Slot,
    /// The VMM is started, and loads its memory and device state.
    Machine,
    /// The writable drive is filled.
    Drive,
    /// The guest runs.
    Run,
    /// The guest's agent sets the clock and takes new randomness, the sandbox's identity, and a new token.
    Agent,
    /// The sandbox is handed over.
    Ready,
}

impl Step {
    /// All steps of a resume, and of a create whose image is booted already, in order.
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

/// The function that is told of steps, if any.
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
