//! Files that are open, or about to be.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};

/// Opens a regular file for reading; `None` for what is something else, which is not opened at all: opening a pipe waits, and
/// opening a device may do anything. Whether a link is followed is for `flags` to say.
pub(in crate::agent) fn regular(
    directory: impl AsFd,
    name: impl AsRef<OsStr>,
    flags: OFlags,
) -> io::Result<Option<File>> {
    let found = openat(directory, name.as_ref(), OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty())?;
    if !is_regular(&fstat(&found)?) {
        return Ok(None);
    }
    reopen(&found, OpenOptions::new().read(true)).map(Some)
}

/// The text of a short regular file.
///
/// # Errors
///
/// As [`short_bytes`], and what is no UTF-8.
pub(in crate::agent) fn short_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(short_bytes(path, bytes_max)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// What a short regular file has. A guest's superuser may put anything in the place of a file that the agent reads: what may
/// never end, or not even begin, is not read.
///
/// # Errors
///
/// What is no regular file, or is longer than `bytes_max`.
pub(in crate::agent) fn short_bytes(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = regular(CWD, path, OFlags::empty())?;
    let file = file.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))?;
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Puts `wanted` in the place of a file for all to read, which has `present`, with the directories above it. Readers see the old
/// file or the new one. Nothing is written when nothing changes: each write costs blocks in the next pause.
pub(in crate::agent) fn replace(path: &Path, present: &[u8], wanted: &[u8]) -> io::Result<()> {
    if present == wanted {
        return Ok(());
    }
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    fs::create_dir_all(directory)?;
    let new = directory.join(".wrenn-new");
    write_anew(&new, wanted)?;
    fs::set_permissions(&new, Permissions::from_mode(0o644))?;
    fs::rename(new, path)
}

/// Writes a file that takes another's place by a rename later. What is there by its name goes first.
pub(in crate::agent) fn write_anew(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create_new(path)?.write_all(bytes)
}

/// Writes a file in its place. A pipe that nobody reads is refused, and not waited for.
pub(in crate::agent) fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    file.write_all(text.as_bytes())
}

pub(in crate::agent) fn is_regular(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
}

/// Opens the very file that a descriptor stands for, with the rights of the thread.
pub(in crate::agent) fn reopen(file: &OwnedFd, options: &mut OpenOptions) -> io::Result<File> {
    // A file of the kernel's may have nothing to read yet, which is no reason to wait.
    options.custom_flags(libc::O_NONBLOCK).open(path_of(file))
}

/// A path to the file of a descriptor, or to a name in its directory, for calls that take no descriptor. It is short, however
/// deep the file lies.
pub(in crate::agent) fn path_of(file: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
}

/// Does `work`, which must not wait for whoever opens the other end of a pipe.
#[cfg(test)]
pub(in crate::agent) fn soon<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(std::time::Duration::from_secs(10)).expect("it waits for nobody")
}

/// Puts a pipe where the agent has a file of its own.
#[cfg(test)]
pub(in crate::agent) fn put_pipe(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
}
