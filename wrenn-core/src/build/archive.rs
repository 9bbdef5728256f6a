//! The archives that carry files into a guest. They are made and read as streams: no file and no archive is in memory whole.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::build::context::{Entry, Found, What};
use crate::oci::tar_reader::{TarEntry, TarKind, TarReader};

/// Where in the guest files go, and whose they are.
#[derive(Debug, Clone)]
pub(super) struct Placing {
    /// An absolute path.
    pub(super) to: PathBuf,
    pub(super) kind: PlacingKind,
    pub(super) mode: Option<u32>,
    /// User and group.
    pub(super) owner: (u64, u64),
}

/// What the destination is for a source that is a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlacingKind {
    /// The file itself.
    File,
    /// The directory that the file goes into.
    Directory,
}

impl Placing {
    /// The path of an entry of a source, relative to the root.
    fn path(&self, name: &Path, is_directory: bool, path: &Path) -> io::Result<PathBuf> {
        let whole = match (is_directory, self.kind) {
            (true, _) => self.to.join(path),
            (false, PlacingKind::Directory) => self.to.join(name),
            (false, PlacingKind::File) => self.to.clone(),
        };
        let relative = whole.strip_prefix("/").unwrap_or(&whole).to_owned();
        if relative.as_os_str().is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the destination of a file is `/` itself"));
        }
        Ok(relative)
    }
}

/// Packs files of the host.
pub(super) fn pack(sources: &[Found], placing: &Placing, out: &mut Builder<impl Write>) -> io::Result<()> {
    for source in sources {
        for entry in &source.entries {
            let path = placing.path(&source.name, source.is_directory, &entry.path)?;
            append(entry, &path, placing, out)?;
        }
    }
    Ok(())
}

fn append(entry: &Entry, path: &Path, placing: &Placing, out: &mut Builder<impl Write>) -> io::Result<()> {
    let header = |kind| header(kind, placing.mode.unwrap_or(entry.mode), placing.owner, entry.modified);
    append_xattrs(entry.xattrs.iter().map(|(name, value)| (name.as_str(), value.as_slice())), out)?;
    match &entry.what {
        What::Directory => out.append_data(&mut header(EntryType::Directory), path, io::empty()),
        What::Link(target) => out.append_link(&mut header(EntryType::Symlink), path, target),
        What::Inline(content) => {
            let mut header = header(EntryType::Regular);
            header.set_size(content.len() as u64);
            out.append_data(&mut header, path, content.as_slice())
        }
        What::File { from, len, .. } => {
            let mut header = header(EntryType::Regular);
            header.set_size(*len);
            let content = Exactly { file: File::open(from)?, left: *len };
            out.append_data(&mut header, path, content)
        }
    }
}

/// Adds the attributes of the entry that follows.
fn append_xattrs<'a>(
    xattrs: impl Iterator<Item = (&'a str, &'a [u8])>,
    out: &mut Builder<impl Write>,
) -> io::Result<()> {
    let records: Vec<_> = xattrs.map(|(name, value)| (format!("SCHILY.xattr.{name}"), value)).collect();
    out.append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), *value)))
}

/// A file that has to be as long as it was.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let read = self.file.read(&mut buf[..most])?;
        if read == 0 && !buf.is_empty() {
            return Err(io::Error::other("a file changed its length while it was copied"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Packs anew what a guest has packed of one source: `name` is the source's own, and `is_directory` tells whether its entries
/// are those of a directory.
pub(super) fn repack(
    archive: impl Read,
    name: &Path,
    is_directory: bool,
    excluded: impl Fn(&Path) -> bool,
    placing: &Placing,
    out: &mut Builder<impl Write>,
) -> io::Result<()> {
    let mut archive = TarReader::new(archive);
    while let Some(mut entry) = archive.next()? {
        let below = clean(Path::new(OsStr::from_bytes(&entry.path)));
        if is_directory && (below.as_os_str().is_empty() || excluded(&below)) {
            continue;
        }
        let place =
            |path: &Path| Ok::<_, io::Error>(placing.path(name, is_directory, path)?.into_os_string().into_vec());
        entry.path = place(&below)?;
        if let TarKind::Link(target) = &mut entry.kind {
            *target = place(&clean(Path::new(OsStr::from_bytes(target))))?;
        }
        entry.mode = placing.mode.map_or(Ok(entry.mode), u16::try_from).map_err(io::Error::other)?;
        (entry.uid, entry.gid) = placing.owner;
        append_read(&entry, &mut Content(&mut archive), out)?;
    }
    // What follows the end of the archive is read too, so that its sender is not kept from ending.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
}

/// Adds an entry of a reader, with its content where it is a file.
pub(super) fn append_read(entry: &TarEntry, content: &mut dyn Read, out: &mut Builder<impl Write>) -> io::Result<()> {
    let xattrs = entry.xattrs.iter().filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, &**value)));
    append_xattrs(xattrs, out)?;
    let path = Path::new(OsStr::from_bytes(&entry.path));
    let modified = u64::try_from(entry.mtime.seconds).unwrap_or(0);
    let header = |kind| header(kind, entry.mode.into(), (entry.uid, entry.gid), modified);
    match &entry.kind {
        TarKind::File(extents) => {
            let mut header = header(EntryType::Regular);
            header.set_size(extents.size);
            out.append_data(&mut header, path, content)
        }
        TarKind::Directory => out.append_data(&mut header(EntryType::Directory), path, io::empty()),
        TarKind::Symlink(target) => out.append_link(&mut header(EntryType::Symlink), path, OsStr::from_bytes(target)),
        TarKind::Link(target) => out.append_link(&mut header(EntryType::Link), path, OsStr::from_bytes(target)),
        TarKind::CharDevice(device) | TarKind::BlockDevice(device) => {
            let is_block = matches!(entry.kind, TarKind::BlockDevice(_));
            let mut header = header(if is_block { EntryType::Block } else { EntryType::Char });
            header.set_device_major(device.major)?;
            header.set_device_minor(device.minor)?;
            out.append_data(&mut header, path, io::empty())
        }
        TarKind::Fifo => out.append_data(&mut header(EntryType::Fifo), path, io::empty()),
    }
}

fn header(kind: EntryType, mode: u32, owner: (u64, u64), modified: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Symlink { 0o777 } else { mode });
    header.set_uid(owner.0);
    header.set_gid(owner.1);
    header.set_mtime(modified);
    header.set_size(0);
    header
}

/// The content of a reader's entry. The guest's agent packs no sparse files.
struct Content<'a, R>(&'a mut TarReader<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

/// A path of an archive without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}

#[cfg(test)]
mod tests {
    use tar::Archive;

    use super::*;

    fn placing(kind: PlacingKind) -> Placing {
        Placing { to: PathBuf::from("/srv/app"), kind, mode: None, owner: (5, 6) }
    }

    fn file(path: &str, content: &str) -> Entry {
        let what = What::Inline(content.as_bytes().to_vec());
        Entry { path: PathBuf::from(path), mode: 0o4755, modified: 7, xattrs: Vec::new(), what }
    }

    /// Path, kind, mode, owner, link and content of each entry.
    fn listed(bytes: &[u8]) -> Vec<String> {
        let mut archive = Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            let (header, link) = (entry.header(), entry.link_name().unwrap().unwrap_or_default().into_owned());
            let (mode, uid) = (header.mode().unwrap(), header.uid().unwrap());
            format!("{} {mode:o} {uid} {} {content}", entry.path().unwrap().display(), link.display())
        });
        entries.collect()
    }

    #[test]
    fn what_is_packed_again_for_another_place_is_what_it_was() {
        let long = "x".repeat(150);
        let entries = vec![
            Entry { what: What::Directory, ..file("d", "") },
            file("d/a b", "content"),
            Entry { what: What::Link(PathBuf::from("../d/a b")), ..file("d/link", "") },
            file(&format!("d/{long}"), "long"),
        ];
        let source = Found { name: PathBuf::from("from"), is_directory: true, entries };
        let mut out = Builder::new(Vec::new());
        pack(&[source], &placing(PlacingKind::Directory), &mut out).unwrap();
        let first = out.into_inner().unwrap();
        let expected = [
            "srv/app/d 4755 5  ".to_owned(),
            "srv/app/d/a b 4755 5  content".to_owned(),
            "srv/app/d/link 777 5 ../d/a b ".to_owned(),
            format!("srv/app/d/{long} 4755 5  long"),
        ];
        assert_eq!(listed(&first), expected);
        let mut out = Builder::new(Vec::new());
        let there = Placing { to: PathBuf::from("/b"), mode: Some(0o600), ..placing(PlacingKind::Directory) };
        repack(first.as_slice(), Path::new("from"), true, |path| path.ends_with("link"), &there, &mut out).unwrap();
        let second = listed(&out.into_inner().unwrap());
        assert_eq!(second[1], "b/srv/app/d/a b 600 5  content");
        assert_eq!(second.len(), 3);
    }

    #[test]
    fn a_file_takes_its_own_name_in_a_directory_and_the_destinations_otherwise() {
        let source = || vec![Found { name: PathBuf::from("f"), is_directory: false, entries: vec![file("", "x")] }];
        for (kind, path) in [(PlacingKind::File, "srv/app"), (PlacingKind::Directory, "srv/app/f")] {
            let mut out = Builder::new(Vec::new());
            pack(&source(), &placing(kind), &mut out).unwrap();
            assert_eq!(listed(&out.into_inner().unwrap()), [format!("{path} 4755 5  x")]);
        }
        let root = Placing { to: PathBuf::from("/"), ..placing(PlacingKind::File) };
        assert!(pack(&source(), &root, &mut Builder::new(Vec::new())).is_err());
    }
}
