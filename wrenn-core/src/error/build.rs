//! A step of a template's build that failed.

use std::error::Error;
use std::fmt;

use crate::id::SandboxId;

/// Which step of a template's build failed, and why. It is inside of [`Error::Build`](crate::Error::Build).
///
/// ```no_run
/// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
/// use wrenn_core::{Error, Template};
///
/// match Template::builder("base").run("make install").keep_failed(true).build(host, "app").await {
///     Err(Error::Build(failure)) => {
///         eprintln!("step {} ended with {:?}:\n{}", failure.step, failure.code, failure.last_lines.join("\n"));
///         if let Some(id) = &failure.kept {
///             host.paused(id).await?.resume().await?;
///         }
///     }
///     other => drop(other?),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct BuildFailure {
    /// The number of the step, from 1 on.
    pub step: usize,
    /// The step as its recipe has it.
    pub text: String,
    /// The line of the Dockerfile that the step begins on.
    pub line: Option<usize>,
    /// What went wrong.
    pub problem: String,
    /// The exit code of the step's command, where it exited with one.
    pub code: Option<i32>,
    /// The last lines that the step's command wrote, without the values of secrets.
    pub last_lines: Vec<String>,
    /// The sandbox that was paused where the step failed, where the build was asked to keep it.
    pub kept: Option<SandboxId>,
    pub(crate) source: Option<Box<dyn Error + Send + Sync>>,
}

impl fmt::Display for BuildFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}, `{}`", self.step, self.text)?;
        if let Some(line) = self.line {
            write!(f, " (line {line})")?;
        }
        write!(f, ", failed: {}", self.problem)?;
        if let Some(id) = &self.kept {
            write!(f, "; sandbox {id} is paused there")?;
        }
        for line in &self.last_lines {
            write!(f, "\n{line}")?;
        }
        Ok(())
    }
}

impl Error for BuildFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
