//! The way into a VMM's [room](super::room) for wrenn, which is outside of its mount namespace.
//!
//! The directory belongs to the VMM's user, and a VMM that was broken into may put anything there at any time. wrenn
//! runs as root, so it follows no name that the VMM may have made: it opens each file beneath the directory, without
//! following links, and checks and changes the file by its descriptor.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, openat2, unlinkat};

/// A room's directory.
#[derive(Debug)]
pub(super) struct Door(OwnedFd);

/// A socket of the room. It is connected to by [`path`](Self::path), while this is kept.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Door {
    pub(super) fn to(directory: File) -> Self {
        Self(directory.into())
    }

    /// Opens a regular file of the room to read. It may grow or shrink while it is read.
    ///
    /// # Errors
    /// The name is not there, or is a link or anything else that is not a regular file.
    pub(super) fn open(&self, name: &str) -> io::Result<File> {
        // A pipe would wait for its other end, and a terminal would become the program's own.
        let file = self.at(name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())?;
        let file = File::from(file);
        if !file.metadata()?.is_file() {
            return Err(not_a(name, "regular file"));
        }
        Ok(file)
    }

    /// Reads a regular file of the room.
    ///
    /// # Errors
    /// As [`open`](Self::open); or it has more than `bytes_max` bytes.
    pub(super) fn read(&self, name: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // One byte more than allowed is read, since a file can grow after its length was asked for.
        self.open(name)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            return Err(io::Error::other(format!("the VMM's file {name} has more than {bytes_max} bytes")));
        }
        Ok(bytes)
    }

    /// Makes a file that the VMM may read and not write.
    ///
    /// # Errors
    /// The name is taken, or `fill` failed.
    pub(super) fn make<E: From<io::Error>>(
        &self,
        name: &str,
        fill: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<(), E> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = File::from(self.at(name, flags, Mode::RUSR | Mode::WUSR)?);
        fill(&file)?;
        Ok(file.set_permissions(std::fs::Permissions::from_mode(0o444))?)
    }

    /// Removes a name, whatever it is; what a link leads to stays.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// A socket that the VMM listens on.
    ///
    /// # Errors
    /// The name is not there, or is a link or anything else that is not a socket.
    pub(super) fn socket(&self, name: &str) -> io::Result<Socket> {
        let socket = File::from(self.at(name, OFlags::PATH, Mode::empty())?);
        if !socket.metadata()?.file_type().is_socket() {
            return Err(not_a(name, "socket"));
        }
        Ok(Socket(socket.into()))
    }

    /// Listens on a socket that `uid` may connect to.
    ///
    /// # Errors
    /// The name is taken.
    pub(super) fn listen(&self, name: &str, uid: u32, gid: u32) -> io::Result<UnixListener> {
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))?;
        let Socket(socket) = self.socket(name)?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        chownat(socket.as_fd(), "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        Ok(listener)
    }

    /// The directory, by its descriptor.
    #[cfg(test)]
    pub(super) fn directory(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Opens a name of the directory itself, which is no link, no mount and leads nowhere else.
    fn at(&self, name: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let nowhere_else = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        Ok(openat2(&self.0, name, flags | OFlags::CLOEXEC, mode, nowhere_else)?)
    }
}

impl Socket {
    /// A path to the socket by its descriptor, so that the VMM cannot put another file in its place.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

fn not_a(name: &str, kind: &str) -> io::Error {
    io::Error::other(format!("the VMM's file {name} is no {kind}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    struct Room {
        dir: tempfile::TempDir,
        /// What is not in the room, and which nobody of it may have.
        outside: tempfile::TempDir,
        door: Door,
    }

    fn room() -> Room {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("secret"), "another sandbox's").unwrap();
        let door = Door::to(File::open(dir.path()).unwrap());
        Room { dir, outside, door }
    }

    /// Runs what a hostile room could make wait for ever.
    fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(work()));
        told.recv_timeout(Duration::from_secs(5)).expect("it still waits")
    }

    #[test]
    fn a_file_of_the_room_is_read_and_nothing_that_a_link_leads_to() {
        let Room { dir, outside, door } = room();
        fs::write(dir.path().join("state"), "a state").unwrap();
        assert_eq!(door.read("state", 7).unwrap(), b"a state");
        symlink(outside.path().join("secret"), dir.path().join("link")).unwrap();
        symlink("state", dir.path().join("inner")).unwrap();
        symlink(outside.path(), dir.path().join("directory")).unwrap();
        for name in ["link", "inner", "directory/secret", "../secret", "directory"] {
            assert!(door.read(name, 100).is_err(), "{name} was read");
            assert!(door.open(name).is_err(), "{name} was opened");
        }
    }

    #[test]
    fn what_never_ends_or_never_begins_is_no_file_of_the_room() {
        let Room { dir, outside: _outside, door } = room();
        mkfifo(&dir.path().join("pipe"), Mode::S_IRUSR).unwrap();
        symlink("/dev/zero", dir.path().join("zeros")).unwrap();
        fs::write(dir.path().join("long"), vec![1; 101]).unwrap();
        let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let errors = in_time(move || ["pipe", "zeros", "long", "socket"].map(|name| door.read(name, 100).err()));
        for (name, error) in ["pipe", "zeros", "long", "socket"].iter().zip(errors) {
            assert!(error.is_some(), "{name} was read");
        }
    }

    #[test]
    fn what_is_made_in_the_room_changes_nothing_outside() {
        let Room { dir, outside, door } = room();
        let secret = outside.path().join("secret");
        let before = fs::metadata(&secret).unwrap().mode();
        let (room, target) = (dir.path().to_owned(), secret.clone());
        // The VMM takes the new file away while it is filled, and puts a link there.
        let swapped = door.make("memory", |mut file| {
            io::Write::write_all(&mut file, b"memory")?;
            fs::remove_file(room.join("memory"))?;
            symlink(&target, room.join("memory"))
        });
        assert!(swapped.is_ok());
        assert_eq!(fs::metadata(&secret).unwrap().mode(), before, "the file that a link led to was changed");
        assert!(door.make("memory", |_| Ok::<_, io::Error>(())).is_err(), "a name that is taken is not written to");
        door.make("fresh", |mut file| io::Write::write_all(&mut file, b"x")).unwrap();
        assert_eq!(fs::metadata(dir.path().join("fresh")).unwrap().mode() & 0o777, 0o444);
    }

    #[test]
    fn a_socket_is_connected_to_where_it_is_and_not_where_a_link_leads() {
        let Room { dir, outside, door } = room();
        let _theirs = UnixListener::bind(outside.path().join("socket")).unwrap();
        symlink(outside.path().join("socket"), dir.path().join("api.sock")).unwrap();
        let connected = door.socket("api.sock").and_then(|socket| UnixStream::connect(socket.path()));
        assert!(connected.is_err(), "a link was followed");
        let _ours = UnixListener::bind(dir.path().join("own.sock")).unwrap();
        UnixStream::connect(door.socket("own.sock").unwrap().path()).unwrap();
    }

    #[test]
    fn a_listener_is_its_owners() {
        let Room { dir, outside: _outside, door } = room();
        let me = nix::unistd::geteuid().as_raw();
        let listener = door.listen("memory.sock", me, nix::unistd::getegid().as_raw()).unwrap();
        let _stream = UnixStream::connect(door.socket("memory.sock").unwrap().path()).unwrap();
        listener.accept().unwrap();
        assert_eq!(fs::metadata(dir.path().join("memory.sock")).unwrap().uid(), me);
        symlink("/tmp/elsewhere", dir.path().join("taken.sock")).unwrap();
        assert!(door.listen("taken.sock", me, me).is_err());
    }
}
