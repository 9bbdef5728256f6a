//! What this machine has of what wrenn needs, found by trying it.

mod checks;
mod nft;

use std::fmt;

use crate::HostBuilder;
use crate::probe::Probe;

/// What was found of a machine. Its `Display` is a report of a line or two for each finding.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The VMM that a host would use, and why; or why there is none.
    pub choice: Result<Probe, String>,
    /// What was looked at, in the order of a sandbox's start.
    pub findings: Vec<Finding>,
}

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

impl Diagnosis {
    /// Whether sandboxes can run.
    #[must_use]
    pub fn is_able(&self) -> bool {
        self.choice.is_ok() && self.findings.iter().all(|finding| finding.verdict != Verdict::Missing)
    }

    pub(crate) async fn make(host: HostBuilder) -> Self {
        let data_dir = host.data_dir_or_default();
        let blocking = data_dir.clone();
        let looked = tokio::task::spawn_blocking(move || checks::of_the_host(&blocking)).await;
        let mut findings = looked.unwrap_or_else(|error| vec![checks::failed(&error)]);
        findings.extend(checks::of_programs(&host).await);
        let choice = match host.choose(&data_dir).await {
            Ok(probe) => Ok(probe),
            Err(error) => Err(checks::chain(&error)),
        };
        Self { choice, findings }
    }
}

impl Finding {
    fn good(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Good, found: found.into(), remedy: None }
    }

    fn lacking(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Lacking, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn missing(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
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

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { subject, verdict, found, remedy } in &self.findings {
            writeln!(f, "{verdict:<8} {subject}: {found}")?;
            if let Some(remedy) = remedy {
                writeln!(f, "         {remedy}")?;
            }
        }
        match &self.choice {
            Ok(probe) => {
                writeln!(f, "Sandboxes run under {:?} on {:?}: {}.", probe.driver, probe.acceleration, probe.reason)
            }
            Err(why) => writeln!(f, "No VMM can be used: {why}."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_each_remedy() {
        let findings = vec![
            Finding::good("kernel", "6.18"),
            Finding::lacking("cgroups", "no version 2", "mount it"),
            Finding::missing("tap", "no driver", "modprobe tun"),
        ];
        let diagnosis = Diagnosis { choice: Err("no QEMU".to_owned()), findings };
        let report = diagnosis.to_string();
        assert!(report.contains("good     kernel: 6.18\n"), "{report}");
        assert!(report.contains("MISSING  tap: no driver\n         modprobe tun\n"), "{report}");
        assert!(report.ends_with("No VMM can be used: no QEMU.\n"), "{report}");
        assert!(!diagnosis.is_able());
    }
}
