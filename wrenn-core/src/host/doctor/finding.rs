//! One thing that the doctor looked at, and its verdict.

use std::fmt;

/// One thing that [`HostBuilder::doctor`](crate::HostBuilder::doctor) looked at.
///
/// ```
/// fn todo(finding: &wrenn_core::Finding) -> Option<String> {
///     let remedy = finding.remedy.as_ref()?;
///     Some(format!("{} is {}: {remedy}", finding.subject, finding.verdict))
/// }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at, for instance `kernel`.
    pub subject: &'static str,
    /// Whether it is as it should be.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; `None` where it is [`Verdict::Good`].
    pub remedy: Option<String>,
}

/// Whether what was looked at is as it should be. Verdicts are ordered from good to bad.
///
/// ```
/// use wrenn_core::Verdict;
///
/// assert_eq!(Verdict::Missing.to_string(), "MISSING");
/// assert!(Verdict::Good < Verdict::Lacking && Verdict::Lacking < Verdict::Missing);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It is as it should be.
    Good,
    /// It is not there or not right. Sandboxes run without it, but something works less well or not at all.
    Lacking,
    /// It is not there, and no sandbox can run without it.
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
