//! The guest's file systems: two drives with an overlay over them, and what the kernel offers as files.

use std::{
    fs::{self, File, Permissions},
    io,
    os::fd::OwnedFd,
    os::unix::fs::{FileExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use nix::mount::{MsFlags, mount};

use super::{
    cmdline::Cmdline,
    device::wait_for,
    step::{BootError, Step as _},
};
use crate::agent::console::complain;

/// `/proc`, `/sys` and `/dev`, which every later step reads.
pub(super) fn mount_kernel_files() -> Result<(), BootError> {
    let nothing_runs = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_new("proc", "/proc", "proc", nothing_runs, "")?;
    mount_new("sysfs", "/sys", "sysfs", nothing_runs, "")?;
    mount_new("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")
}

/// The base image, the writable drive, and the overlay that the guest sees as its root. Answers a directory of the drive.
pub(super) fn mount_drives(cmdline: &Cmdline) -> Result<OwnedFd, BootError> {
    for device in [&cmdline.base, &cmdline.drive] {
        wait_for(device).step(format!("wait for {}", device.display()))?;
    }
    let kind = FileSystem::of(&cmdline.base).step(format!("read {}", cmdline.base.display()))?;
    mount_new(&cmdline.base, BASE, kind.name(), MsFlags::MS_RDONLY | MsFlags::MS_NOATIME, "")?;
    mount_new(&cmdline.drive, DRIVE, "ext4", MsFlags::MS_NOATIME, "")?;
    let (upper, work) = (format!("{DRIVE}/upper"), format!("{DRIVE}/work"));
    for directory in [&upper, &work] {
        ensure_directory(directory).step(format!("make {directory}"))?;
    }
    // The mode of the root itself comes from the upper directory.
    ensure_mode(&upper, 0o755).step(format!("open {upper} to all users"))?;
    mount_new("overlay", ROOT, "overlay", MsFlags::MS_NOATIME, &overlay(BASE, &upper, &work))?;
    Ok(File::open(DRIVE).step(format!("open {DRIVE}"))?.into())
}

/// The file system of a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileSystem {
    Erofs,
    /// Also what is no file system at all: its mount then tells so.
    Ext4,
}

impl FileSystem {
    fn of(device: &Path) -> io::Result<Self> {
        let mut magic = [0; EROFS_MAGIC.len()];
        File::open(device)?.read_exact_at(&mut magic, EROFS_MAGIC_OFFSET)?;
        Ok(if magic == EROFS_MAGIC { Self::Erofs } else { Self::Ext4 })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }
}

/// `EROFS_SUPER_MAGIC_V1`, at the beginning of the superblock: `fs/erofs/erofs_fs.h` of Linux.
const EROFS_MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();
const EROFS_MAGIC_OFFSET: u64 = 1024;

/// What an overlay is made of. A directory of the base can be renamed in it: the new name leads back to the old one, and
/// nothing is copied.
fn overlay(base: &str, upper: &str, work: &str) -> String {
    format!("lowerdir={base},upperdir={upper},workdir={work},redirect_dir=on")
}

/// Makes the overlay the root, and takes the kernel's files along. What the initramfs held is freed, except for the running
/// agent's own pages.
pub(super) fn switch_root() -> Result<(), BootError> {
    for place in ["/proc", "/sys", "/dev"] {
        let target = format!("{ROOT}{place}");
        ensure_directory(&target).step(format!("make {target}"))?;
        mount(Some(place), target.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .step(format!("move {place}"))?;
    }
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
    nix::unistd::chdir(ROOT).step("enter the new root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).step("move the new root")?;
    nix::unistd::chroot(".").step("change the root")?;
    nix::unistd::chdir("/").step("enter the root")
}

/// The file systems that programs expect to find.
pub(super) fn mount_rest() -> Result<(), BootError> {
    let scratch = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_new("devpts", "/dev/pts", "devpts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666")?;
    mount_new("tmpfs", "/dev/shm", "tmpfs", scratch, "mode=1777")?;
    mount_new("tmpfs", "/run", "tmpfs", scratch, "mode=0755")?;
    mount_control_groups(scratch | MsFlags::MS_NOEXEC);
    for (link, target) in DEV_LINKS {
        let _ = symlink(target, link);
    }
    for place in ["/tmp", "/var/tmp"] {
        ensure_directory(place).and_then(|()| ensure_mode(place, 0o1777)).step(format!("open {place} to all users"))?;
    }
    Ok(())
}

/// Whoever moves a process between groups by its number, as container runtimes do, and the agent itself at its start,
/// waits for a grace period of RCU, 12 ms of any processor; as does who delegates a controller. With `favordynmods` (Linux
/// 6.0) none does, and forks cost a barrier more.
fn mount_control_groups(flags: MsFlags) {
    let mounted = mount_new("cgroup2", CGROUPS, "cgroup2", flags, "favordynmods")
        .or_else(|_perhaps_older| mount_new("cgroup2", CGROUPS, "cgroup2", flags, ""));
    if let Err(error) = mounted {
        // A kernel without control groups runs programs all the same.
        complain(&format!("{error}: {}", error.source));
    }
}

fn mount_new(source: impl AsRef<Path>, target: &str, kind: &str, flags: MsFlags, data: &str) -> Result<(), BootError> {
    let source = source.as_ref();
    let step = || format!("mount {} ({kind}) on {target}", source.display());
    ensure_directory(target).step(step())?;
    mount(Some(source), target, Some(kind), flags, Some(data)).step(step())
}

fn ensure_directory(path: &str) -> io::Result<()> {
    if Path::new(path).is_dir() { Ok(()) } else { fs::create_dir_all(path) }
}

/// A mode that is right already is not set again: that would be a copy of a directory of the base.
fn ensure_mode(path: &str, mode: u32) -> io::Result<()> {
    if fs::metadata(path)?.permissions().mode() & 0o7777 == mode {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

const BASE: &str = "/base";
const DRIVE: &str = "/drive";
const ROOT: &str = "/newroot";
const CGROUPS: &str = "/sys/fs/cgroup";

/// What a shell's process substitution and many scripts need, and `devtmpfs` lacks.
const DEV_LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

#[cfg(test)]
mod tests {
    use nix::{
        mount::{MntFlags, umount2},
        sched::{CloneFlags, unshare},
    };

    use super::*;

    /// In a mount namespace of its own, which goes with the thread.
    fn rename_of_a_base_directory() -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let place = tempfile::tempdir()?;
        let at = |name: &str| format!("{}/{name}", place.path().display());
        mount(Some("tmpfs"), place.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        for directory in ["base", "base/etc", "base/etc/default", "upper", "work", "root"] {
            fs::create_dir(at(directory))?;
        }
        fs::write(at("base/etc/default/kept"), "kept")?;
        let options = overlay(&at("base"), &at("upper"), &at("work"));
        mount(Some("overlay"), at("root").as_str(), Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
        let renamed = fs::rename(at("root/etc/default"), at("root/etc/default2"));
        let kept = fs::read_to_string(at("root/etc/default2/kept"));
        umount2(at("root").as_str(), MntFlags::MNT_DETACH)?;
        umount2(place.path(), MntFlags::MNT_DETACH)?;
        assert!(renamed.is_ok(), "{renamed:?}");
        assert_eq!(kept?, "kept");
        Ok(())
    }

    #[test]
    fn a_directory_of_the_base_can_be_renamed() {
        match std::thread::spawn(rename_of_a_base_directory).join().expect("no panic") {
            Ok(()) => {}
            Err(error) => println!("skipped: a_directory_of_the_base_can_be_renamed: {error}"),
        }
    }
}
