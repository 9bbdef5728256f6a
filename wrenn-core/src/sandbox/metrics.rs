//! How much a sandbox uses, counted by its guest and by its host.

use std::time::Duration;

use wrenn_net::EgressCounters;

use crate::agent::metrics::GuestMetrics;
use crate::error::{Error, Result};
use crate::runtime::blocking;
use crate::sandbox::handle::Sandbox;

/// How much processor, memory, disk and network a sandbox uses, as [`Sandbox::metrics`] counts it.
///
/// ```
/// fn is_cached(metrics: &wrenn_core::SandboxMetrics) -> bool {
///     metrics.guest.memory_cache_bytes > metrics.guest.memory_used_bytes
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SandboxMetrics {
    /// What the guest's kernel counts. The guest may lie about it.
    pub guest: GuestMetrics,
    /// What this host's kernel counts.
    pub vmm: VmmMetrics,
    /// What went through the guest's way out since its create, resume or fork.
    pub network: EgressCounters,
}

/// What a sandbox's VMM costs its host, by the host's kernel: `/proc/PID/stat` and `/proc/PID/smaps_rollup`, see
/// proc(5).
///
/// ```
/// fn cost(vmm: &wrenn_core::VmmMetrics) -> String {
///     format!("{:?} of processor time, {} MiB", vmm.processor_time, vmm.proportional_bytes >> 20)
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct VmmMetrics {
    /// How long the VMM's threads have run, in user and in system mode, added up, in steps of 10 ms.
    pub processor_time: Duration,
    /// The VMM's resident memory with the guest's in it, in bytes.
    pub resident_bytes: u64,
    /// The same, but of a page that several processes share only this process's part is counted, in bytes.
    pub proportional_bytes: u64,
}

impl Sandbox {
    /// Counts how much the sandbox uses now: processor, memory, disk and network as its guest counts them, and
    /// processor and memory of its VMM as this host counts them. The call does not count as a use of the sandbox for
    /// its time-to-live.
    ///
    /// # Errors
    /// [`Error::InvalidState`] or [`Error::VmEnded`] where it does not run, [`Error::Agent`] where its agent does not
    /// answer in time.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves nothing behind.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// let metrics = sandbox.metrics().await?;
    /// println!("{} of {} bytes", metrics.guest.memory_used_bytes, metrics.guest.memory_total_bytes);
    /// println!("costs this host {} bytes", metrics.vmm.proportional_bytes);
    /// # Ok(()) }
    /// ```
    pub async fn metrics(&self) -> Result<SandboxMetrics> {
        const WHAT: &str = "tell what it uses";
        let agent = self.agent();
        let guest = self
            .while_running(WHAT, async { agent.metrics().await.map_err(Error::agent("tell what it uses")) })
            .await?;
        let pid = self.vmm_pid().await?;
        let vmm = blocking(WHAT, move || VmmMetrics::of(pid)).await?;
        let network = self.with_way_out(WHAT, |egress| egress.counters()).await?;
        // Where the VMM has ended since, its end is a better reason than a missing file of /proc.
        self.while_running(WHAT, async { Ok(()) }).await?;
        Ok(SandboxMetrics { guest, network, vmm: vmm.map_err(|e| Error::failed(WHAT)(e.into()))? })
    }
}

impl VmmMetrics {
    fn of(pid: u32) -> std::io::Result<Self> {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        let (stat, memory) = (read("stat")?, read("smaps_rollup")?);
        let missing = || std::io::Error::other("the kernel's words on the VMM are not understood");
        let ticks = processor_ticks(&stat).ok_or_else(missing)?;
        let kib = |field| field_kib(&memory, field).ok_or_else(missing);
        Ok(Self {
            processor_time: Duration::from_millis(ticks * MS_PER_TICK),
            resident_bytes: kib("Rss:")? * 1024,
            proportional_bytes: kib("Pss:")? * 1024,
        })
    }
}

/// The 14th and 15th field; the second is a name in parentheses, which may hold anything.
fn processor_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

fn field_kib(memory: &str, field: &str) -> Option<u64> {
    memory.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse().ok())
}

/// Linux counts in `USER_HZ`, which is 100 on x86-64.
const MS_PER_TICK: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_ones_own_is_measured() {
        let metrics = VmmMetrics::of(std::process::id()).unwrap();
        assert!(metrics.resident_bytes >= metrics.proportional_bytes && metrics.proportional_bytes > 0, "{metrics:?}");
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_moves_no_field() {
        assert_eq!(processor_ticks("7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 12 30 0 0 20 0 1 0"), Some(42));
        assert_eq!(processor_ticks("7 (short) S"), None);
        assert_eq!(field_kib("x\nRss:        12 kB\nPss:  7 kB\n", "Pss:"), Some(7));
    }
}
