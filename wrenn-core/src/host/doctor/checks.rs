//! The checks of the doctor. Each check tries the thing itself, so that the kernel decides.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;

use crate::error::{Error, Result, chain};
use crate::guest::manifest::Surroundings;
use crate::host::builder::HostBuilder;
use crate::host::doctor::file_system;
use crate::host::doctor::finding::Finding;
use crate::host::doctor::firecracker;
use crate::host::doctor::needs;
use crate::image::installed::Image;
use crate::site::survey;
use crate::unnamed;
use crate::vmm::rehearsal::Rehearsal;
use crate::vmm::tracking::Tracking;
use crate::vmm::ways::{self, Handling};

/// The checks that need no VMM. Blocks for some milliseconds.
pub(super) fn of_the_host(data_dir: &Path) -> Vec<Finding> {
    vec![
        kernel(),
        data_directory(data_dir),
        unnamed_files(data_dir),
        shared_storage(data_dir),
        images(data_dir),
        records(data_dir),
        privilege(),
        kvm(),
        userfaultfd(),
        mount_namespaces(),
        cgroups(),
    ]
}

/// What every sandbox needs, as the opening of a host finds it, and what lazy restores need of the VMM's start. Blocks.
pub(super) fn of_a_start(rehearsal: Result<Rehearsal>) -> Vec<Finding> {
    let rehearsal = match rehearsal {
        Ok(rehearsal) => rehearsal,
        Err(error) => return vec![failed(&error)],
    };
    let tracing = match &rehearsal.tracing {
        Ok(()) => Finding::good("tracing", "nothing keeps a VMM from being traced at its start"),
        Err(why) => Finding::lacking("tracing", why, "grant these: until then each restore copies all memory first"),
    };
    needs::of_a_start(rehearsal).into_iter().map(Finding::from).chain([tracing]).collect()
}

/// The VMMs that are installed.
pub(super) async fn of_programs(host: &HostBuilder) -> Vec<Finding> {
    let mut findings = firecracker::findings(host).await;
    let qemu = match host.qemu_version().await {
        Ok(version) => Finding::good("qemu", version),
        Err(error) => Finding::lacking("qemu", chain(&error), "it is needed where KVM serves no Firecracker"),
    };
    findings.push(qemu);
    findings
}

pub(super) fn failed(error: &dyn std::error::Error) -> Finding {
    Finding::missing("doctor", chain(error), "report this: the checks themselves failed")
}

fn kernel() -> Finding {
    let Surroundings { kernel, processor, .. } = Surroundings::here();
    let found = format!("Linux {kernel} on {}", processor.name);
    if cfg!(not(target_arch = "x86_64")) {
        return Finding::missing("machine", found, "use an x86-64 machine: the drivers know no other yet");
    }
    Finding::good("machine", found)
}

fn data_directory(path: &Path) -> Finding {
    const WHAT: &str = "data directory";
    if let Err(error) = std::fs::create_dir_all(path).and_then(|()| tempfile::tempfile_in(path).map(drop)) {
        let found = format!("{} cannot be written: {error}", path.display());
        return Finding::missing(WHAT, found, "run as a user who may, or name another one with WRENN_DATA_DIR");
    }
    let free = match statvfs(path) {
        Ok(space) => space.blocks_available() * space.fragment_size(),
        Err(errno) => return Finding::lacking(WHAT, errno.to_string(), "its free space cannot be told"),
    };
    let found = format!("{} has {} MiB free", path.display(), free >> 20);
    if let Some(kind) = file_system::remote(path) {
        let found = format!("{found}, on {kind}");
        return Finding::lacking(WHAT, found, "put it on a local file system: locks and clones there were not tried");
    }
    if free < FREE_BYTES_MIN {
        return Finding::lacking(
            WHAT,
            found,
            "free some: building the base image takes 1.5 GiB, each pause what was written",
        );
    }
    Finding::good(WHAT, found)
}

/// What this program's rights give. Whether they suffice is tried with the start of a VMM.
fn privilege() -> Finding {
    const WHAT: &str = "privilege";
    if geteuid().is_root() {
        return Finding::good(WHAT, "root: each VMM runs as a user of its own");
    }
    Finding::lacking(
        WHAT,
        format!(
            "user {}: VMMs run as this user, networks are made in user namespaces (unless it has CAP_SYS_ADMIN), QEMU \
             is the only VMM",
            geteuid()
        ),
        "run as root, where VMMs are to be kept from each other and from this user's files, or Firecracker is to be used",
    )
}

fn unnamed_files(path: &Path) -> Finding {
    const WHAT: &str = "unnamed files";
    use std::os::unix::fs::OpenOptionsExt;
    match OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(path) {
        Ok(_) => Finding::good(WHAT, "the data directory's file system has O_TMPFILE"),
        Err(error) => Finding::lacking(
            WHAT,
            format!("O_TMPFILE fails there: {error}"),
            "put WRENN_DATA_DIR on ext4, xfs or btrfs: Firecracker's drives need it",
        ),
    }
}

fn shared_storage(path: &Path) -> Finding {
    const WHAT: &str = "shared storage";
    let cloned = unnamed::unnamed_file(path).and_then(|file| unnamed::clone(&file, path));
    match cloned {
        Ok(_) => Finding::good(WHAT, "the data directory's file system clones files"),
        Err(error) => Finding::lacking(
            WHAT,
            format!("FICLONE fails there: {error}"),
            "put WRENN_DATA_DIR on xfs or btrfs: else a fork under Firecracker takes as long as reading its sandbox's drive",
        ),
    }
}

fn images(data_dir: &Path) -> Finding {
    const WHAT: &str = "images";
    match Image::names(data_dir) {
        Ok(names) if names.is_empty() => Finding::missing(
            WHAT,
            "there are none",
            "make one: `Host::ensure_image(\"base\")`, or from a shell `wrenn-server setup`",
        ),
        Ok(names) => {
            let ages: Vec<(&String, Option<u64>)> = names.iter().map(|name| (name, age_days(data_dir, name))).collect();
            let said: Vec<String> = ages
                .iter()
                .map(|(name, days)| match days {
                    Some(days) if *days > 0 => format!("{name} ({days} days old)"),
                    _ => (*name).clone(),
                })
                .collect();
            let said = said.join(", ");
            if ages.iter().any(|(_, days)| days.is_some_and(|days| days > OLD_DAYS)) {
                let remedy = "have those that are old made anew, for the fixes of their kernels and packages: \
                    `ImageBuilder::refresh`, `wrenn-server setup --refresh`, or `wrenn-server images pull --refresh`";
                return Finding::lacking(WHAT, said, remedy);
            }
            Finding::good(WHAT, said)
        }
        Err(error) => Finding::missing(
            WHAT,
            chain(&error),
            "move it aside, and make it anew with `Host::ensure_image` or `wrenn-server setup`",
        ),
    }
}

/// How old the older of an image's kernel and base is.
fn age_days(data_dir: &Path, name: &str) -> Option<u64> {
    let image = Image::open(data_dir, name).ok()?;
    let since = image.kernel_fetched_at().map_or_else(|| image.built_at(), |kernel| kernel.min(image.built_at()));
    Some(since.elapsed().ok()?.as_secs() / 86_400)
}

/// Debian's stable kernel has fixes of security each few weeks.
const OLD_DAYS: u64 = 60;

/// Whether each record can be read, and what it names is there.
fn records(data_dir: &Path) -> Finding {
    const WHAT: &str = "records";
    let remedy = "mend each, restore it from a copy, or remove it; until then what it may need stays on disk";
    match survey::damaged_in(data_dir) {
        Ok(damaged) if damaged.is_empty() => Finding::good(WHAT, "all can be read"),
        Ok(damaged) => {
            let named: Vec<String> =
                damaged.iter().map(|record| format!("{}: {}", record.path.display(), record.reason)).collect();
            Finding::lacking(WHAT, named.join("; "), remedy)
        }
        Err(error) => Finding::lacking(WHAT, chain(&error), remedy),
    }
}

/// Whether `/dev/kvm` can be opened. Whether it runs guests is found out when the VMM is chosen.
fn kvm() -> Finding {
    const WHAT: &str = "kvm";
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Finding::good(WHAT, "/dev/kvm opens; whether it runs guests is said below"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::lacking(
            WHAT,
            "there is no /dev/kvm",
            "load kvm_intel or kvm_amd, or switch virtualization on in the firmware or the cloud's settings; without it \
             QEMU emulates the processor",
        ),
        Err(error) => {
            Finding::lacking(WHAT, format!("/dev/kvm: {error}"), "give this user the group `kvm`, or run as root")
        }
    }
}

fn userfaultfd() -> Finding {
    const WHAT: &str = "lazy restore";
    match ways::lazy() {
        Ok(()) => Finding::good(WHAT, "userfaultfd serves pages"),
        Err(why) => Finding::lacking(
            WHAT,
            format!("{why}; each restore copies all memory first"),
            "run as root, or give this user /dev/userfaultfd; before Linux 6.1 set vm.unprivileged_userfaultfd=1",
        ),
    }
}

/// How guests would get their memory, and how what they write would be found.
pub(super) fn tracking(handling: &Result<Handling>) -> Finding {
    const WHAT: &str = "tracking";
    let Handling { paging, tracking } = match handling {
        Ok(handling) => handling,
        Err(Error::Host { problem, remedy, .. }) => return Finding::missing(WHAT, problem, remedy),
        Err(error) => return Finding::missing(WHAT, chain(error), "choose another way of paging or tracking"),
    };
    let found = format!("Tracking::{tracking:?} with Paging::{paging:?}: ");
    match tracking {
        Tracking::Vmm => Finding::good(WHAT, found + "Firecracker tracks what its guests write"),
        Tracking::Async => Finding::good(WHAT, found + "the kernel marks each page that is written"),
        Tracking::Sync => Finding::lacking(
            WHAT,
            found + "the first write to a page after a restore waits for some 10 us",
            "use Linux 6.7 or later, where it takes about one",
        ),
        Tracking::Compare => Finding::lacking(
            WHAT,
            found + "each pause and fork compares all memory that was touched, some 100 ms for each 100 MiB",
            "use Linux 5.19 or later, better 6.7, with userfaultfd and lazy paging",
        ),
    }
}

fn mount_namespaces() -> Finding {
    const WHAT: &str = "mount namespaces";
    // A thread cannot leave a mount namespace again, so the check runs on a thread that ends.
    let tried = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNS)).join();
    match tried {
        Ok(Ok(())) => Finding::good(WHAT, "one can be made"),
        Ok(Err(errno)) => Finding::lacking(WHAT, errno.to_string(), "run as root: Firecracker is started in one"),
        Err(_) => Finding::lacking(WHAT, "the check panicked", "report this"),
    }
}

fn cgroups() -> Finding {
    const WHAT: &str = "cgroups";
    let remedy = "boot with cgroup version 2 and its controllers: without them the jailer bounds no machine's memory";
    match std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") {
        Ok(controllers)
            if ["cpu", "memory", "pids"].iter().all(|name| controllers.split_whitespace().any(|c| c == *name)) =>
        {
            Finding::good(WHAT, controllers.trim())
        }
        Ok(controllers) => Finding::lacking(WHAT, format!("version 2 has only [{}]", controllers.trim()), remedy),
        Err(error) => Finding::lacking(WHAT, format!("no version 2: {error}"), remedy),
    }
}

const FREE_BYTES_MIN: u64 = 2 << 30;
