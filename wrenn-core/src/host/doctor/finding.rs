//! One thing that was looked at, and how it is.

use std::fmt;

/// One thing that was looked at.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Finding {
    /// What.
    pub subject: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it, unless all is well.
    pub remedy: Option<String>,
}

/// How a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Sandboxes run without it, with something less.
    Lacking,
    /// No sandbox runs without it.
    Missing,
}

impl Finding {
    pub(super) fn good(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Good, found: found.into(), remedy: None }
    }

    pub(super) fn lacking(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Lacking, found: found.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn missing(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Missing, ..Self::lacking(subject, found, remedy) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "good",
            Self::Lacking => "lacking",
            Self::Missing => "MISSING",
        })
    }
}
