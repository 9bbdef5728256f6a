//! The control groups of the guest (cgroup v2), where the kernel has them.
//!
//! ```text
//!  hierarchy -+- agent             memory.min, so that a guest short of memory still answers
//!             +- sandbox           memory.max, pids.max; what a freeze stops
//!                 +- ptys -- p1    cpu.weight 200; a leaf for each process, so that all it has started can be killed,
//!                 +- user -- p2    cpu.weight 50   and has one share of the processor together
//! ```
//!
//! Without control groups processes run all the same: less is limited, and less can be found again.

mod group;
mod kind;
mod leaves;

use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use group::{delegate, limit, make};
pub(super) use kind::Kind;
pub(super) use leaves::Leaf;
use leaves::Leaves;

/// The groups, and what they are made of.
#[derive(Debug, Default)]
pub(super) struct Groups {
    hierarchy: Option<PathBuf>,
    leaves: Leaves,
}

impl Groups {
    /// No groups.
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// Makes the groups below `hierarchy`, a directory of a mounted cgroup2.
    ///
    /// # Errors
    ///
    /// Where no group can be made. Limits that the kernel cannot keep are left out.
    pub(super) fn create(hierarchy: &Path) -> io::Result<Self> {
        let sandbox = hierarchy.join("sandbox");
        for directory in [&sandbox, &sandbox.join(Kind::Pty.name()), &sandbox.join(Kind::User.name())] {
            make(directory)?;
        }
        OpenOptions::new().write(true).open(sandbox.join("cgroup.procs"))?;
        for parent in [hierarchy, &sandbox] {
            delegate(parent, &["+cpu", "+memory", "+pids"]);
        }
        // Each process has its share then, however many another one has started.
        for kind in [Kind::Pty, Kind::User] {
            delegate(&sandbox.join(kind.name()), &["+cpu"]);
        }
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        if let Some(bytes_max) = memory_max(&meminfo) {
            limit(&sandbox, "memory.max", bytes_max);
        }
        if let Some(processes_max) = processes_max() {
            limit(&sandbox, "pids.max", processes_max);
        }
        limit(&sandbox.join(Kind::Pty.name()), "cpu.weight", 200);
        limit(&sandbox.join(Kind::User.name()), "cpu.weight", 50);
        Ok(Self { hierarchy: Some(hierarchy.to_owned()), ..Self::default() })
    }

    /// Moves the agent into a group of its own, with memory that nobody else can take from it.
    pub(super) fn adopt_agent(&self) -> io::Result<()> {
        let Some(hierarchy) = &self.hierarchy else { return Ok(()) };
        let directory = hierarchy.join("agent");
        make(&directory)?;
        limit(&directory, "memory.min", AGENT_MEMORY_MIN);
        limit(&directory, "cpu.weight", 1000);
        fs::write(directory.join("cgroup.procs"), "0")
    }

    /// The group of all processes; `None` where there are no groups.
    pub(super) fn sandbox(&self) -> Option<PathBuf> {
        self.hierarchy.as_ref().map(|hierarchy| hierarchy.join("sandbox"))
    }

    /// A group for one process.
    pub(super) fn leaf(&self, kind: Kind) -> io::Result<Option<Leaf>> {
        let parent = self.sandbox().map(|sandbox| sandbox.join(kind.name()));
        parent.map(|parent| self.leaves.take(kind, &parent)).transpose()
    }

    /// Takes back the group of a process that has ended, now or when the last of its background processes has ended too.
    pub(super) fn retire(&self, leaf: &Leaf) {
        self.leaves.retire(leaf);
    }

    /// Takes back the retired groups that nobody is in any more.
    pub(super) fn sweep(&self) {
        self.leaves.sweep();
    }
}

/// What processes may use, in bytes: all but an eighth, and at most 128 MiB less than there is.
fn memory_max(meminfo: &str) -> Option<u64> {
    let kibibytes: u64 =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    let total = kibibytes.checked_mul(1024)?;
    Some(total - (total / 8).min(128 << 20))
}

/// How many tasks processes may be: an eighth less than the kernel can have, so that the agent can still start one.
fn processes_max() -> Option<u64> {
    let number = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let kernel_max = number("/proc/sys/kernel/threads-max")?.min(number("/proc/sys/kernel/pid_max")?);
    Some(kernel_max - kernel_max / 8)
}

/// What the agent needs with many processes and full journals, in bytes.
const AGENT_MEMORY_MIN: u64 = 24 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_memory_for_the_agent() {
        assert_eq!(memory_max("MemTotal:  262144 kB\n"), Some((256 << 20) - (32 << 20)));
        assert_eq!(memory_max("MemTotal:  8388608 kB\n"), Some((8 << 30) - (128 << 20)));
        assert_eq!(memory_max(""), None);
    }

    #[test]
    fn keeps_numbers_for_the_agent() {
        assert!(processes_max().is_some_and(|most| most > 100));
    }

    #[test]
    fn without_groups_nothing_fails() {
        let groups = Groups::none();
        assert!(groups.leaf(Kind::User).unwrap().is_none() && groups.sandbox().is_none());
        groups.adopt_agent().unwrap();
        groups.sweep();
        let nowhere = tempfile::tempdir().unwrap();
        assert!(Groups::create(nowhere.path()).is_err(), "no cgroup2");
    }
}
