//! The directory of one Firecracker: a file system of its own, in a mount namespace of its own.
//!
//! Firecracker knows drives, sockets and files by path, and a snapshot keeps the drives' paths for good. So each VMM
//! gets a directory in which they are always called the same. It is a tmpfs that is mounted in the mount namespace of
//! the VM's thread alone: no other process can name what is in it, clones of one snapshot do not meet, and the kernel
//! frees all of it with the VMM and the thread, however they end.
//!
//! ```text
//!  data directory/vmm/room      a mount point, empty for everybody else
//!    └─ inside                  the VMM's working directory, or the root of its jail
//!         base, drive           mounts of the files that the sandbox has
//!         kernel, initramfs     for a boot
//!         api.sock, memory.sock
//!         state, memory         what a snapshot reads and writes; memory, so that its fsync costs nothing
//! ```

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sched::{CloneFlags, setns};
use rustix::fs::{AtFlags, CWD, linkat};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};

use crate::vmm::devices::{self, at, give};
use crate::vmm::firecracker::door::Door;
use crate::vmm::identity::Identity;

/// A room to be made by the thread whose child the VMM will be.
#[derive(Debug)]
pub(super) struct Room {
    /// The directory that has only rooms in it.
    pub(super) parent: PathBuf,
    /// The VMM's directory, under the mount point. A jailer makes a root of it.
    pub(super) inside: PathBuf,
    pub(super) bytes_max: u64,
    pub(super) owner: Identity,
    /// The network namespace to be in.
    pub(super) namespace: OwnedFd,
    /// Files to mount, read-only for the room's owner.
    pub(super) mounts: Vec<(&'static str, File)>,
    pub(super) drive: File,
    pub(super) contents: Vec<Content>,
    pub(super) devices: Devices,
}

/// A file that is there before the VMM is.
#[derive(Debug)]
pub(super) enum Content {
    File(&'static str, Vec<u8>),
    Copy(&'static str, File),
}

/// Whether the room or the jailer makes the device nodes that the VMM opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Devices {
    /// The jailer, in its root.
    Jailer,
    /// The room makes them and mounts them over the host's, since the VMM's user may not open the host's.
    Room,
}

impl Room {
    /// Makes the directory of rooms under `data_dir`, and removes what a program left behind that was killed while it
    /// made a room.
    pub(super) fn prepare(data_dir: &Path) -> io::Result<PathBuf> {
        let parent = data_dir.join("vmm");
        DirBuilder::new().recursive(true).mode(0o711).create(parent.join(MOUNT_POINT))?;
        for entry in fs::read_dir(&parent)? {
            let entry = entry?;
            let age = SystemTime::now().duration_since(entry.metadata()?.modified()?).unwrap_or_default();
            if entry.file_type()?.is_file() && age > LINK_AGE_MAX {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(parent)
    }

    /// The mount point of the rooms under `parent`.
    pub(super) fn mount_point(parent: &Path) -> PathBuf {
        parent.join(MOUNT_POINT)
    }

    /// Moves the calling thread into the network namespace, and into a new mount namespace with the room in it.
    pub(super) fn enter(self) -> io::Result<Door> {
        setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(at("enter the network namespace"))?;
        let mut trees = Vec::new();
        for (name, file) in &self.mounts {
            trees.push((*name, tree_of(file, "").map_err(at("clone a file's mount"))?));
        }
        // A file without a name cannot be mounted, not even by its descriptor. So the drive gets a name until it is
        // mounted.
        let name = Named::link(&self.drive, &self.parent).map_err(at("name the drive"))?;
        trees.push((DRIVE, tree_of(&self.drive, &name.0).map_err(at("clone the drive's mount"))?));
        devices::private_mounts()?;
        let place = Self::mount_point(&self.parent);
        let options = std::ffi::CString::new(format!("size={},mode=0711", self.bytes_max))?;
        mount("tmpfs", &place, "tmpfs", MountFlags::NOSUID, options.as_c_str()).map_err(at("mount a tmpfs"))?;
        let inside = place.join(&self.inside);
        fs::create_dir_all(&inside)?;
        give(&inside, &self.owner, 0o700)?;
        for (name, tree) in &trees {
            File::create_new(inside.join(name))?;
            move_mount(tree, "", CWD, inside.join(name), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(at("mount a file"))?;
        }
        fchown(&self.drive, Some(self.owner.uid), Some(self.owner.gid))?;
        drop(name);
        for content in &self.contents {
            let path = inside.join(content.name());
            content.write(&path)?;
            give(&path, &self.owner, 0o400)?;
        }
        if self.devices == Devices::Room {
            for device in DEVICES {
                devices::offer(device, &place, &self.owner).map_err(at("give the VMM its devices"))?;
            }
        }
        Ok(Door::to(File::open(&inside)?))
    }
}

impl Content {
    fn name(&self) -> &'static str {
        match self {
            Self::File(name, _) | Self::Copy(name, _) => name,
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::File(_, bytes) => fs::write(path, bytes),
            Self::Copy(_, from) => io::copy(&mut &*from, &mut File::create_new(path)?).map(drop),
        }
    }
}

/// A temporary name of a file that had none. Dropping this removes the name.
struct Named(PathBuf);

impl Named {
    fn link(file: &File, directory: &Path) -> io::Result<Self> {
        let path = directory.join(format!("drive-{:016x}", rand::random::<u64>()));
        linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
        Ok(Self(path))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // The next `prepare` removes a name that could not be removed here.
        let _ = fs::remove_file(&self.0);
    }
}

/// A mount of `path`, or of `file` itself where that is empty.
fn tree_of(file: &File, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(file, path, flags)
}

pub(super) const BASE: &str = "base";
pub(super) const DRIVE: &str = "drive";
const MOUNT_POINT: &str = "room";
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/net/tun", "/dev/userfaultfd"];
/// It takes a millisecond.
const LINK_AGE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn room(data_dir: &Path, drive: File) -> Room {
        Room {
            parent: Room::prepare(data_dir).unwrap(),
            inside: "firecracker/x/root".into(),
            bytes_max: 1 << 20,
            owner: Identity::unreserved(1_900_000_000, 1_900_000_000),
            namespace: File::open("/proc/thread-self/ns/net").unwrap().into(),
            mounts: vec![(BASE, File::open("/etc/passwd").unwrap())],
            drive,
            contents: vec![Content::File("state", b"state".to_vec())],
            devices: Devices::Room,
        }
    }

    #[test]
    fn a_room_has_its_files_and_nobody_else_sees_them() {
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: a_room_has_its_files_and_nobody_else_sees_them: mount namespaces need root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let drive = crate::unnamed::unnamed_file(dir.path()).unwrap();
        let room = room(dir.path(), drive.try_clone().unwrap());
        let (opened, door) = std::sync::mpsc::channel();
        let (leave, left) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            opened.send(room.enter().unwrap()).unwrap();
            left.recv().unwrap_err();
        });
        let door = door.recv().unwrap();
        assert_eq!(door.read("state", 5).unwrap(), b"state");
        // As the VMM sees it.
        let path = |name: &str| Path::new(&door.directory()).join(name);
        assert_eq!(fs::read(path(BASE)).unwrap(), fs::read("/etc/passwd").unwrap());
        fs::write(path(DRIVE), b"written through the mount").unwrap();
        assert!(door.open(DRIVE).is_err(), "a mount is no file of the room's own");
        let mut start = [0; 7];
        drive.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(&start, b"written");
        let listener = door.listen("memory.sock", 0, 0).unwrap();
        std::os::unix::net::UnixStream::connect(door.socket("memory.sock").unwrap().path()).unwrap();
        drop(listener);
        assert!(fs::metadata(path(DRIVE)).unwrap().len() > 0);
        let outside: Vec<_> = fs::read_dir(dir.path().join("vmm")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(outside, ["room"], "the drive's name is gone");
        assert_eq!(fs::read_dir(dir.path().join("vmm/room")).unwrap().count(), 0);
        drop(leave);
        thread.join().unwrap();
        assert_eq!(fs::metadata(path(DRIVE)).unwrap().len(), 0, "the mounts go with the thread");
    }

    #[test]
    fn a_name_that_a_killed_program_left_is_swept_and_a_fresh_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let parent = Room::prepare(dir.path()).unwrap();
        let (old, fresh) = (parent.join("drive-old"), parent.join("drive-fresh"));
        let file = File::create_new(&old).unwrap();
        file.set_modified(SystemTime::now() - 2 * LINK_AGE_MAX).unwrap();
        File::create_new(&fresh).unwrap();
        Room::prepare(dir.path()).unwrap();
        assert!(!old.exists() && fresh.exists());
    }
}
