//! Clients' archives, unpacked as data: nothing that they have leads out of their directory, and nothing of it is run.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

/// Unpacks a tar archive, compressed by gzip or not, into a directory that is empty and that nobody else writes to. Blocks.
///
/// # Errors
/// What is wrong with the archive, or with the disk.
pub(in crate::service) fn unpack(mut archive: File, into: &Path) -> Result<(), String> {
    let mut head = [0; 2];
    let is_compressed = archive.read_exact(&mut head).is_ok() && head == [0x1f, 0x8b];
    archive.seek(SeekFrom::Start(0)).map_err(|error| error.to_string())?;
    let archive = BufReader::with_capacity(BUFFER_BYTES, archive);
    if is_compressed { unpack_from(MultiGzDecoder::new(archive), into) } else { unpack_from(archive, into) }
}

fn unpack_from(archive: impl Read, into: &Path) -> Result<(), String> {
    let mut unpacking =
        Unpacking { into, left: Left { entries: ENTRIES_MAX, bytes: BYTES_MAX }, directories: Vec::new() };
    // A limit for what is read, too: what says that it is long, and is passed over.
    let mut archive = Archive::new(archive.take(BYTES_MAX.saturating_mul(2)));
    let broken = |error: io::Error| format!("the files are no whole tar archive: {error}");
    for entry in archive.entries().map_err(broken)? {
        unpacking.entry(&mut entry.map_err(broken)?)?;
    }
    // What may not be written to takes its mode last; what is in it comes before it.
    for (path, mode) in unpacking.directories.into_iter().rev() {
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(|error| error.to_string())?;
    }
    Ok(())
}

struct Unpacking<'a> {
    into: &'a Path,
    left: Left,
    directories: Vec<(PathBuf, u32)>,
}

struct Left {
    entries: usize,
    bytes: u64,
}

impl Unpacking<'_> {
    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), String> {
        self.left.entries =
            self.left.entries.checked_sub(1).ok_or_else(|| format!("the files are too many: {ENTRIES_MAX} at most"))?;
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let told = |error: io::Error| format!("{shown:?} cannot be unpacked: {error}");
        let path = entry.path().map_err(told)?.into_owned();
        let path = below(&path).ok_or_else(|| format!("{shown:?} leads out of its archive"))?;
        let Some(name) = path.file_name() else { return Ok(()) };
        let directory = self.directory(path.parent().unwrap_or_else(|| Path::new("")), None).map_err(told)?;
        let to = directory.join(name);
        let mode = entry.header().mode().map_err(told)?;
        match kind {
            EntryType::Directory => self.directory(&path, Some(mode)).map(drop).map_err(told),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                // It is the reader's and the server's own, without rights that a program of this machine could take.
                let mode = mode & 0o777 | 0o400;
                let mut file = fresh(&to, mode).map_err(told)?;
                let max = self.left.bytes;
                let copied = io::copy(&mut entry.take(max.saturating_add(1)), &mut file).map_err(told)?;
                self.left.bytes = max
                    .checked_sub(copied)
                    .ok_or_else(|| format!("the files are too large: {} GiB at most", BYTES_MAX >> 30))?;
                file.set_permissions(Permissions::from_mode(mode)).map_err(told)?;
                let modified = entry
                    .header()
                    .mtime()
                    .ok()
                    .and_then(|sec| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(sec)));
                modified.map_or(Ok(()), |at| file.set_modified(at)).map_err(told)
            }
            EntryType::Symlink => {
                let target = entry.link_name().map_err(told)?.ok_or_else(|| format!("{shown:?} leads nowhere"))?;
                remove(&to).map_err(told)?;
                std::os::unix::fs::symlink(target, &to).map_err(told)
            }
            EntryType::Link => {
                let target = entry.link_name().map_err(told)?.ok_or_else(|| format!("{shown:?} leads nowhere"))?;
                let target = below(&target).ok_or_else(|| format!("{shown:?} leads out of its archive"))?;
                let from = self.existing(&target).map_err(told)?;
                remove(&to).map_err(told)?;
                // A link would have both be one file, whose mode another entry may change.
                fs::copy(from, &to).map_err(told).and_then(|copied| {
                    self.left.bytes = self
                        .left
                        .bytes
                        .checked_sub(copied)
                        .ok_or_else(|| format!("the files are too large: {} GiB at most", BYTES_MAX >> 30))?;
                    Ok(())
                })
            }
            _ => Err(format!("{shown:?} is neither a file nor a directory nor a link")),
        }
    }

    /// The path of a directory, which is made where it is missing. No link is followed.
    fn directory(&mut self, path: &Path, mode: Option<u32>) -> io::Result<PathBuf> {
        let mut at = self.into.to_owned();
        for name in path {
            at.push(name);
            match at.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => return Err(io::Error::other("it is in what is no directory")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.left.entries = self.left.entries.checked_sub(1).ok_or_else(|| io::Error::other("too many"))?;
                    DirBuilder::new().mode(0o755).create(&at)?;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(mode) = mode {
            self.directories.push((at.clone(), mode & 0o777 | 0o700));
        }
        Ok(at)
    }

    /// The path of a file that is there, to which no link leads.
    fn existing(&self, path: &Path) -> io::Result<PathBuf> {
        let mut at = self.into.to_owned();
        for name in path {
            if !at.symlink_metadata()?.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            at.push(name);
        }
        if at.symlink_metadata()?.is_file() { Ok(at) } else { Err(io::Error::other("it is a link to what is no file")) }
    }
}

/// A relative path without `.` and `..`; `None` for one that leads out.
fn below(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

/// A new file, in place of what is there but for a directory.
fn fresh(path: &Path, mode: u32) -> io::Result<File> {
    remove(path)?;
    File::options().write(true).create_new(true).mode(mode & 0o700 | 0o200).open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

const ENTRIES_MAX: usize = 300_000;
/// Unpacked. An archive may be small, and have much in it.
const BYTES_MAX: u64 = 16 << 30;
const BUFFER_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tar::{Builder, Header};

    use super::*;

    fn header(kind: EntryType, name: &str, len: u64, link: &str) -> Header {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().expect("GNU").name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().expect("GNU").linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(len);
        header.set_mode(0o4755);
        header.set_cksum();
        header
    }

    fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut out = Builder::new(Vec::new());
        for (kind, name, content) in entries {
            let is_file = *kind == EntryType::Regular;
            let (len, link) = if is_file { (content.len() as u64, "") } else { (0, *content) };
            out.append(&header(*kind, name, len, link), if is_file { content.as_bytes() } else { b"" }).expect("added");
        }
        out.into_inner().expect("whole")
    }

    fn unpacked(bytes: &[u8]) -> (tempfile::TempDir, Result<(), String>) {
        let dir = tempfile::tempdir().expect("a directory");
        let into = dir.path().join("in");
        fs::create_dir(&into).expect("made");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).and_then(|()| file.seek(SeekFrom::Start(0))).expect("written");
        let done = unpack(file, &into);
        (dir, done)
    }

    #[test]
    fn files_directories_and_links_are_there_without_more_rights() {
        let tar = archive(&[
            (EntryType::Regular, "a/b/c.txt", "text"),
            (EntryType::Directory, "./a/b", ""),
            (EntryType::Symlink, "a/out", "/etc/passwd"),
            (EntryType::Link, "a/hard", "a/b/c.txt"),
            (EntryType::Regular, "a/b/c.txt", "again"),
        ]);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar).expect("written");
        for bytes in [tar, gzip.finish().expect("whole")] {
            let (dir, done) = unpacked(&bytes);
            done.expect("unpacked");
            let at = |path: &str| dir.path().join("in").join(path);
            assert_eq!(fs::read_to_string(at("a/b/c.txt")).expect("a file"), "again");
            assert_eq!(fs::read_to_string(at("a/hard")).expect("a file"), "text");
            assert_eq!(fs::read_link(at("a/out")).expect("a link"), Path::new("/etc/passwd"));
            for path in ["a/b", "a/b/c.txt"] {
                assert_eq!(fs::metadata(at(path)).expect("there").permissions().mode() & 0o7777, 0o755);
            }
        }
    }

    #[test]
    fn nothing_leads_out_and_what_is_no_data_is_refused() {
        for entries in [
            &[(EntryType::Regular, "../x", "x")][..],
            &[(EntryType::Regular, "/x", "x")],
            &[(EntryType::Regular, "a/../../x", "x")],
            &[(EntryType::Symlink, "a", ".."), (EntryType::Regular, "a/x", "x")],
            &[(EntryType::Symlink, "a", "/tmp"), (EntryType::Directory, "a/x", "")],
            &[(EntryType::Link, "a", "../secret")],
            &[(EntryType::Link, "a", "/etc/passwd")],
            &[(EntryType::Symlink, "l", "/etc/passwd"), (EntryType::Link, "a", "l")],
            &[(EntryType::Symlink, "l", "/etc"), (EntryType::Link, "a", "l/passwd")],
            &[(EntryType::Char, "a", "")],
            &[(EntryType::Fifo, "a", "")],
        ] {
            let (dir, done) = unpacked(&archive(entries));
            assert!(done.is_err(), "{entries:?}");
            let left: Vec<_> = fs::read_dir(dir.path()).expect("a list").collect();
            assert_eq!(left.len(), 1, "{left:?}");
        }
    }

    #[test]
    fn what_is_no_archive_or_a_part_of_one_is_refused() {
        let whole = archive(&[(EntryType::Regular, "a", &"x".repeat(2000))]);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&whole).expect("written");
        let gzip = gzip.finish().expect("whole");
        for bad in [&whole[..1024], &gzip[..gzip.len() / 2], b"hello, I am no archive", b"\x1f\x8b"] {
            let (_dir, done) = unpacked(bad);
            assert!(done.is_err(), "{} bytes", bad.len());
        }
    }
}
