//! A directory of this machine, as a layer.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::erofs::{Device, Meta, Time};
use crate::oci::convert::keep;
use crate::oci::digest::Digest;
use crate::oci::entry::{Entry, EntryKind, Place, Stored};
use crate::oci::error::OciError;
use crate::oci::index;
use crate::oci::layer_writer::LayerWriter;
use crate::oci::limits::Budget;
use crate::oci::stream::Stoppable;

/// Reads a directory with all that is in it, in the order of names. The digest is of names, attributes and content, and
/// so the same for two directories that are alike. Returns it and the bytes of all files. Without a writer, nothing is
/// written. Blocks.
pub(super) fn read(
    root: &Path,
    writer: Option<&mut LayerWriter>,
    budget: &Budget,
    stop: &Stoppable<()>,
) -> Result<(Digest, u64), OciError> {
    let (hash, seen) = (Sha256::new(), HashMap::new());
    let mut walk = Walk { root, writer, budget, stop, hash, seen, bytes: 0, buffer: vec![0; 1 << 18] };
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let place = root.join(&path);
        let is_directory = walk.visit(&path, &place)?;
        if is_directory {
            let fault = || OciError::io("list", &place);
            let entries = fs::read_dir(&place).map_err(fault())?;
            let names: Result<Vec<_>, _> =
                entries.map(|entry| entry.map(|entry| path.join(entry.file_name()))).collect();
            let mut names = names.map_err(fault())?;
            names.sort_unstable_by(|one, other| other.cmp(one));
            pending.append(&mut names);
        }
    }
    Ok((Digest::from_bytes(walk.hash.finalize().into()), walk.bytes))
}

struct Walk<'a> {
    root: &'a Path,
    writer: Option<&'a mut LayerWriter>,
    budget: &'a Budget,
    stop: &'a Stoppable<()>,
    hash: Sha256,
    /// The first name of each file that has several.
    seen: HashMap<(u64, u64), Vec<u8>>,
    bytes: u64,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    /// Whether it is a directory.
    fn visit(&mut self, path: &Path, place: &Path) -> Result<bool, OciError> {
        self.budget.take_entries(1)?;
        let fault = || OciError::io("read", place);
        self.stop.check().map_err(fault())?;
        let found = fs::symlink_metadata(place).map_err(fault())?;
        let (kind, name) = (found.file_type(), path.as_os_str().as_bytes().to_vec());
        if name.is_empty() && !kind.is_dir() {
            return Err(OciError::Io {
                what: "list",
                path: self.root.to_owned(),
                source: io::ErrorKind::NotADirectory.into(),
            });
        }
        let meta = meta(place, &found).map_err(fault())?;
        let first = (!kind.is_dir() && found.nlink() > 1).then(|| {
            let first = self.seen.entry((found.dev(), found.ino())).or_insert_with(|| name.clone());
            first.clone()
        });
        let kind = match first.filter(|first| *first != name) {
            Some(first) => EntryKind::Link(first),
            None if kind.is_file() => {
                self.file(name, meta, place, found.len()).map_err(|error| match error.downcast::<OciError>() {
                    Ok(error) => error,
                    Err(error) => fault()(error),
                })?;
                return Ok(false);
            }
            None => other(place, kind, &found).map_err(fault())?,
        };
        let entry = Entry { path: name, meta, kind };
        self.record(&entry);
        if let Some(writer) = &mut self.writer {
            writer.add(&entry).map_err(fault())?;
        }
        Ok(found.is_dir())
    }

    fn record(&mut self, entry: &Entry) {
        let mut bytes = Vec::new();
        index::encode(entry, &mut bytes);
        self.hash.update(&bytes);
    }

    fn file(&mut self, path: Vec<u8>, meta: Meta, place: &Path, size: u64) -> io::Result<()> {
        self.budget.take_bytes(size).map_err(io::Error::other)?;
        self.bytes += size;
        let kind = EntryKind::File(Stored { size, place: Place::Data(0) });
        self.record(&Entry { path: path.clone(), meta: meta.clone(), kind });
        if let Some(writer) = &mut self.writer {
            writer.begin_file(size);
        }
        // What is appended meanwhile is not taken.
        let mut file = File::open(place)?.take(size);
        let mut offset = 0;
        while offset < size {
            self.stop.check()?;
            let count = file.read(&mut self.buffer)?;
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was shortened meanwhile"));
            }
            self.hash.update(&self.buffer[..count]);
            if let Some(writer) = &mut self.writer {
                writer.content(offset, &self.buffer[..count])?;
            }
            offset += count as u64;
        }
        self.writer.as_mut().map_or(Ok(()), |writer| writer.end_file(path, meta))
    }
}

fn other(place: &Path, kind: FileType, found: &Metadata) -> io::Result<EntryKind> {
    let device = Device { major: libc::major(found.rdev()), minor: libc::minor(found.rdev()) };
    Ok(match kind {
        kind if kind.is_dir() => EntryKind::Directory,
        kind if kind.is_symlink() => EntryKind::Symlink(fs::read_link(place)?.into_os_string().as_bytes().to_vec()),
        kind if kind.is_char_device() => EntryKind::CharDevice(device),
        kind if kind.is_block_device() => EntryKind::BlockDevice(device),
        kind if kind.is_fifo() => EntryKind::Fifo,
        _ => EntryKind::Socket,
    })
}

fn meta(place: &Path, found: &Metadata) -> io::Result<Meta> {
    Ok(Meta {
        mode: u16::try_from(found.mode() & 0o7777).map_err(io::Error::other)?,
        uid: found.uid(),
        gid: found.gid(),
        mtime: Time { seconds: found.mtime(), nanos: u32::try_from(found.mtime_nsec()).unwrap_or(0) },
        xattrs: xattrs(place)?,
    })
}

fn xattrs(place: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut buffer = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = match rustix::fs::llistxattr(place, &mut buffer) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    buffer.truncate(length);
    let mut xattrs = BTreeMap::new();
    for name in buffer.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
        let length = rustix::fs::lgetxattr(place, OsStr::from_bytes(name), &mut value)?;
        value.truncate(length);
        if keep(name, &value) {
            xattrs.insert(name.to_vec(), value);
        }
    }
    Ok(xattrs)
}

/// What Linux lets a file have: of names, and of each value.
const ATTRIBUTE_BYTES_MAX: usize = 1 << 16;
