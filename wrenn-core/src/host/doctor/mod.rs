//! The doctor: tries on this machine everything that wrenn needs.

mod checks;
mod file_system;
pub(crate) mod finding;
mod firecracker;
mod memory;
pub(crate) mod needs;

use crate::error::chain;
use crate::host::choice::Chosen;
use crate::host::doctor::finding::Finding;
use crate::host::doctor::finding::Verdict;
use crate::host::handle::Host;
use std::fmt;

use crate::host::builder::HostBuilder;
use crate::vmm::probe::Probe;

/// What [`HostBuilder::doctor`] found on this machine. Its `Display` is a report with a line or two for each finding.
///
/// ```no_run
/// # async fn demo() {
/// let diagnosis = wrenn_core::Host::doctor().await;
/// if !diagnosis.is_able() {
///     eprintln!("{diagnosis}");
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The VMM that a host would use and why, or why no VMM can be used.
    pub choice: Result<Probe, String>,
    /// What was looked at, in the order in which the start of a sandbox needs it.
    pub findings: Vec<Finding>,
}

impl HostBuilder {
    /// Checks whether this machine has everything that wrenn needs. The answer tells which VMM would be used and why,
    /// and has a remedy for each thing that is missing. The call takes up to some seconds and never fails.
    ///
    /// # Cancel-Safety
    /// A check that has begun ends by itself, and leaves nothing behind.
    ///
    /// ```no_run
    /// # async fn demo() {
    /// println!("{}", wrenn_core::Host::builder().doctor().await);
    /// # }
    /// ```
    pub async fn doctor(self) -> Diagnosis {
        Diagnosis::make(self).await
    }
}

impl Host {
    /// Checks this machine with the default options, as [`HostBuilder::doctor`] does.
    ///
    /// # Cancel-Safety
    /// As [`HostBuilder::doctor`].
    pub async fn doctor() -> Diagnosis {
        Self::builder().doctor().await
    }
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
        let (Chosen { vmm, rehearsal }, memory) = host.choose(&data_dir).await;
        let looked = tokio::task::spawn_blocking(|| checks::of_a_start(rehearsal)).await;
        findings.extend(looked.unwrap_or_else(|error| vec![checks::failed(&error)]));
        findings.extend(memory.as_ref().map(checks::tracking));
        let choice = match vmm {
            Ok((_, probe)) => Ok(probe),
            Err(error) => Err(chain(&error)),
        };
        Self { choice, findings }
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
