//! How much memory this program may still take: the machine's, and that of each control group above the program.

use std::fs;
use std::path::{Path, PathBuf};

/// What a limit leaves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Free {
    pub(crate) bytes: u64,
    /// Where, for a sentence.
    pub(crate) of: String,
}

/// The least of what is free by each limit. `root` is the root of the file system that `/proc` and `/sys` are in.
pub(crate) fn free(root: &Path) -> Option<Free> {
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| available(&text));
    let machine = machine.map(|bytes| Free { bytes, of: "on this machine".to_owned() });
    let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    groups(root, &own).into_iter().filter_map(|group| left(&group)).chain(machine).min_by_key(|free| free.bytes)
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The directories of the program's control groups that can limit memory, from its own up.
fn groups(root: &Path, own: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let top = match controllers {
            "" => root.join("sys/fs/cgroup"),
            list if list.split(',').any(|name| name == "memory") => root.join("sys/fs/cgroup/memory"),
            _ => continue,
        };
        // A path from outside of a container's view is not there; the container's own top is.
        let path = Path::new(path.trim_start_matches('/'));
        found.extend(path.ancestors().map(|path| top.join(path)));
    }
    found
}

/// What a group's limit leaves; `None` for a group without one. Page cache, which the kernel would give back, counts as
/// free.
fn left(group: &Path) -> Option<Free> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (limit, used) = match number("memory.max") {
        Some(limit) => (limit, number("memory.current")?),
        None => (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?),
    };
    let stat = read("memory.stat").unwrap_or_default();
    let inactive = ["total_inactive_file ", "inactive_file "];
    let cache = inactive.iter().find_map(|name| stat.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()));
    let used = used.saturating_sub(cache.unwrap_or(0));
    Some(Free { bytes: limit.saturating_sub(used), of: format!("under the limit of {}", group.display()) })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A root directory with these files.
    pub(crate) fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    pub(crate) const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:     1048576 kB\n");

    #[test]
    fn the_tightest_limit_counts_in_either_version_of_control_groups() {
        let free = |files: &[(&str, &str)]| free(machine(files).path()).unwrap().bytes >> 20;
        assert_eq!(free(&[MEMINFO]), 1024);
        let (two, one) = (("proc/self/cgroup", "0::/a/b\n"), ("proc/self/cgroup", "3:cpu:/x\n9:memory:/a\n0::/\n"));
        let limits = [("sys/fs/cgroup/a/memory.max", "209715200"), ("sys/fs/cgroup/a/b/memory.max", "max")];
        let used = [("sys/fs/cgroup/a/memory.current", "104857600"), ("sys/fs/cgroup/a/memory.stat", "anon 1\n")];
        assert_eq!(free(&[&[MEMINFO, two], &limits[..], &used].concat()), 100);
        let limit = [
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "209715200"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "104857600"),
            ("sys/fs/cgroup/memory/a/memory.stat", "cache 9\ntotal_inactive_file 52428800\n"),
        ];
        assert_eq!(free(&[&[MEMINFO, one], &limit[..]].concat()), 150);
    }
}
