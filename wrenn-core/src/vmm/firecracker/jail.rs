//! Firecracker's jailer: the recommended way in production. It makes the root, the device nodes and the cgroup, changes
//! the user, and executes Firecracker; it cleans nothing up. Its root is in the VM's [room](super::room), so that goes
//! with the VM, and the [`Cgroup`] here removes what is left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::vmm::identity::Identity;
use crate::vmm::shape::MachineShape;

/// How to start Firecracker in a jail.
#[derive(Debug)]
pub(super) struct Jail<'a> {
    pub(super) firecracker: &'a Path,
    pub(super) id: &'a str,
    pub(super) chroot_base: &'a Path,
    pub(super) identity: &'a Identity,
    pub(super) cgroup: Option<&'a Limits>,
}

impl Jail<'_> {
    /// Where the jailer puts its root, under the chroot base.
    pub(super) fn root(firecracker: &Path, id: &str) -> PathBuf {
        Path::new(firecracker.file_name().unwrap_or_default()).join(id).join("root")
    }

    /// The jailer's arguments; `arguments` are Firecracker's own.
    pub(super) fn arguments(&self, arguments: &[String]) -> Vec<String> {
        let mut all = Vec::new();
        let mut option = |name: &str, value: String| all.extend([name.to_owned(), value]);
        option("--id", self.id.to_owned());
        option("--exec-file", self.firecracker.display().to_string());
        option("--uid", self.identity.uid.to_string());
        option("--gid", self.identity.gid.to_string());
        option("--chroot-base-dir", self.chroot_base.display().to_string());
        option("--resource-limit", format!("no-file={OPEN_FILES_MAX}"));
        if let Some(Limits { settings, .. }) = self.cgroup {
            option("--cgroup-version", "2".to_owned());
            option("--parent-cgroup", PARENT.to_owned());
            settings.iter().for_each(|(name, value)| option("--cgroup", format!("{name}={value}")));
        }
        all.push("--".to_owned());
        all.extend_from_slice(arguments);
        all
    }
}

/// What a VMM's cgroup allows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Limits {
    hierarchy: PathBuf,
    settings: Vec<(&'static str, String)>,
}

impl Limits {
    /// Those that the host's controllers can hold; `None` where it has none for wrenn to use.
    pub(super) fn of(shape: &MachineShape) -> Option<Self> {
        let hierarchy = PathBuf::from("/sys/fs/cgroup");
        let controllers = fs::read_to_string(hierarchy.join("cgroup.controllers")).ok()?;
        let memory = (u64::from(shape.memory_mib) + OVERHEAD_MIB) << 20;
        let wanted = [
            // Guest memory, a diff of all of it in the room, and the VMM.
            ("memory", "memory.max", (memory + (u64::from(shape.memory_mib) << 20)).to_string()),
            ("cpu", "cpu.weight", (100 * shape.vcpus).min(10_000).to_string()),
            ("pids", "pids.max", (shape.vcpus + OTHER_THREADS_MAX).to_string()),
        ];
        let has = |controller| controllers.split_whitespace().any(|name| name == controller);
        let settings: Vec<_> =
            wanted.into_iter().filter(|(name, ..)| has(*name)).map(|(_, name, value)| (name, value)).collect();
        (!settings.is_empty()).then_some(Self { hierarchy, settings })
    }

    pub(super) fn cgroup(&self, id: &str) -> Cgroup {
        Cgroup(self.hierarchy.join(PARENT).join(id))
    }
}

/// A VMM's cgroup, removed when it is dropped, which is after the VMM.
#[derive(Debug)]
pub(super) struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        match fs::remove_dir(&self.0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A killed process may be there for a moment; the next `sweep` removes it.
            Err(error) => tracing::debug!(%error, "cgroup {} is left for later", self.0.display()),
        }
    }
}

/// Removes the cgroups whose VMMs are gone, also those of other programs. A young and empty cgroup is kept, since a
/// jailer may be about to move into it.
pub(super) fn sweep() {
    sweep_under(&Path::new("/sys/fs/cgroup").join(PARENT));
}

fn sweep_under(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let is_old = |entry: &fs::DirEntry| {
        let made = entry.metadata().and_then(|metadata| metadata.modified());
        made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > STARTING_MAX))
    };
    let is_ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(ID_PREFIX);
    for entry in entries.flatten().filter(|entry| is_ours(entry) && is_old(entry)) {
        // It fails with `EBUSY` for a cgroup that is in use.
        let _ = fs::remove_dir(entry.path());
    }
}

/// A name that no other VMM has.
pub(super) fn fresh_id() -> String {
    format!("{ID_PREFIX}{:016x}", rand::random::<u64>())
}

const ID_PREFIX: &str = "vm-";
/// A jailer takes some 30 ms.
const STARTING_MAX: Duration = Duration::from_secs(60);
const PARENT: &str = "wrenn";
/// Firecracker's own promise is 5 MiB; the copy of its binary is in the room too.
const OVERHEAD_MIB: u64 = 64;
/// Besides vCPUs: the VMM's and the API's.
const OTHER_THREADS_MAX: u32 = 8;
const OPEN_FILES_MAX: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_empty_group_of_ours_is_swept_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["vm-old", "vm-young", "vm-used", "other"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        // What a group's processes are to the kernel, a file is to a directory: it cannot be removed.
        fs::write(dir.path().join("vm-used/process"), "").unwrap();
        for name in ["vm-old", "vm-used", "other"] {
            let group = fs::File::open(dir.path().join(name)).unwrap();
            group.set_modified(std::time::SystemTime::now() - 2 * STARTING_MAX).unwrap();
        }
        sweep_under(dir.path());
        let there = |name: &str| dir.path().join(name).exists();
        assert!(!there("vm-old") && there("vm-young") && there("vm-used") && there("other"));
    }

    #[test]
    fn the_jailers_arguments_come_before_firecrackers() {
        let limits = Limits { hierarchy: "/x".into(), settings: vec![("memory.max", "7".to_owned())] };
        let jail = Jail {
            firecracker: Path::new("/usr/bin/firecracker"),
            id: "vm-1",
            chroot_base: Path::new("/data/vmm/room"),
            identity: &Identity::unreserved(7, 8),
            cgroup: Some(&limits),
        };
        let line = jail.arguments(&["--api-sock".to_owned(), "api.sock".to_owned()]).join(" ");
        assert_eq!(
            line,
            "--id vm-1 --exec-file /usr/bin/firecracker --uid 7 --gid 8 --chroot-base-dir /data/vmm/room \
             --resource-limit no-file=256 --cgroup-version 2 --parent-cgroup wrenn --cgroup memory.max=7 -- \
             --api-sock api.sock"
        );
        assert_eq!(Jail::root(jail.firecracker, jail.id), Path::new("firecracker/vm-1/root"));
    }
}
