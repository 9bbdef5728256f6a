//! What a build tells while it runs.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::id::TemplateName;

/// What a build tells of itself, in its order. Its `Display` is a line for a person.
///
/// ```no_run
/// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
/// let build = wrenn_core::Template::builder("base").run("make").build(host, "app");
/// build.on_event(|event| eprintln!("{event}")).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildEvent {
    /// When, by the host's clock.
    pub at: SystemTime,
    /// The number of the step that it is about, from 1 on; `None` for the build as a whole.
    pub step: Option<usize>,
    /// What.
    pub kind: BuildEventKind,
}

/// What a build tells.
///
/// ```
/// use wrenn_core::BuildEventKind;
///
/// fn log(kind: &BuildEventKind) -> Option<&str> {
///     match kind {
///         BuildEventKind::Line { text, .. } => Some(text),
///         _ => None,
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildEventKind {
    /// A step begins, or is taken from the cache.
    Began {
        /// The step as its recipe has it.
        text: String,
        /// How many steps there are in all.
        steps: usize,
        /// Whether the step was done before, so that nothing has to be done.
        cached: bool,
    },
    /// The OCI image that the build begins with is pulled.
    Image {
        /// What is done, as a line for a person.
        text: String,
    },
    /// Another build does this step, and this one waits for it.
    Waiting,
    /// A line that the step's command has written, without the values of secrets.
    Line {
        /// Where to.
        stream: BuildStream,
        /// The line, without its end.
        text: String,
    },
    /// The start command runs, and the build waits until it is ready.
    ReadyWaiting,
    /// A step is done.
    Ended {
        /// How long it took, with the storing of what it has made.
        took: Duration,
        /// What it stored, in bytes; 0 for a step of the cache, and for one that changes no file.
        stored_bytes: u64,
    },
    /// Something of the recipe has no effect.
    Warning {
        /// What, and why.
        text: String,
    },
    /// The template is there.
    Published {
        /// Its name.
        template: TemplateName,
    },
}

/// Where a line was written to.
///
/// ```
/// assert_ne!(wrenn_core::BuildStream::Stdout, wrenn_core::BuildStream::Stderr);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl fmt::Display for BuildEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(step) = self.step {
            write!(f, "[{step}] ")?;
        }
        match &self.kind {
            BuildEventKind::Began { text, steps, cached } => {
                write!(f, "of {steps}: {text}{}", if *cached { " (cached)" } else { "" })
            }
            BuildEventKind::Waiting => write!(f, "waits for another build of the same step"),
            BuildEventKind::Line { text, .. } | BuildEventKind::Image { text } => write!(f, "{text}"),
            BuildEventKind::ReadyWaiting => write!(f, "waits until it is ready"),
            BuildEventKind::Ended { took, stored_bytes } => {
                write!(f, "done in {:.2} s, {stored_bytes} bytes stored", took.as_secs_f64())
            }
            BuildEventKind::Warning { text } => write!(f, "warning: {text}"),
            BuildEventKind::Published { template } => write!(f, "template {template} is there"),
        }
    }
}
