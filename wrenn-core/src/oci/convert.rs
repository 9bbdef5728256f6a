//! A layer's archive, as a stream, into the files of a layer.
//!
//! ```text
//! blob ─▶ Hashing ─▶ Decoder: gzip, … or none   ─▶ Hashing ─▶ TarReader ─▶ LayerWriter
//!         its digest                                diff_id
//! ```

use std::io::{self, BufReader, Read};

use crate::erofs::{Device, Meta, SYMLINK_BYTES_MAX, check_attribute};
use crate::oci::decoder::Decoder;
use crate::oci::digest::{Digest, Hashing};
use crate::oci::entry::{Entry, EntryKind, Named, names};
use crate::oci::error::{EntryFault, OciError};
use crate::oci::layer_writer::LayerWriter;
use crate::oci::limits::Budget;
use crate::oci::tar_reader::{Extents, TarEntry, TarKind, TarReader};

/// What an archive was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Converted {
    /// Of the bytes that came, and how many they were.
    pub(super) blob: Digest,
    pub(super) blob_bytes: u64,
    /// Of the archive in them.
    pub(super) diff_id: Digest,
    pub(super) unpacked_bytes: u64,
}

/// Reads an archive to its end. `what` is its name in errors. The caller finishes the writer, if the digests are right.
pub(super) fn convert(
    blob: impl Read,
    writer: &mut LayerWriter,
    budget: &Budget,
    what: &str,
) -> Result<Converted, OciError> {
    let fault = |error: io::Error| fault(error, what);
    let decoder = Decoder::sniff(Hashing::new(blob)).map_err(fault)?;
    let metered = Metered { inner: Hashing::new(decoder), budget, bytes: 0, exceeded: None };
    let mut reader = TarReader::new(BufReader::with_capacity(BUFFER_BYTES, metered));
    let mut layer = Layer { writer, budget, what, buffer: vec![0; BUFFER_BYTES], file_bytes: 0 };
    let read = layer.read(&mut reader);
    let mut metered = reader.into_inner().into_inner();
    // What follows the archive's end counts for its digest.
    let rest = read.and_then(|()| io::copy(&mut metered, &mut io::sink()).map(drop).map_err(fault));
    if let Some(exceeded) = metered.exceeded.take() {
        return Err(exceeded);
    }
    rest?;
    let unpacked_bytes = metered.bytes.max(layer.file_bytes);
    let decoder = metered.inner;
    let (diff_id, blob) = decoder.finish_with(Decoder::into_inner).map_err(fault)?;
    let (blob, blob_bytes) = blob.finish().map_err(fault)?;
    Ok(Converted { blob, blob_bytes, diff_id, unpacked_bytes })
}

fn fault(error: io::Error, what: &str) -> OciError {
    match error.downcast::<OciError>() {
        Ok(error) => error,
        Err(error) => {
            let reason = match error.kind() {
                io::ErrorKind::UnexpectedEof => format!("it ends early ({error})"),
                _ => error.to_string(),
            };
            OciError::Malformed { what: what.to_owned(), reason, source: Some(error.into()) }
        }
    }
}

struct Layer<'a> {
    writer: &'a mut LayerWriter,
    budget: &'a Budget,
    what: &'a str,
    buffer: Vec<u8>,
    file_bytes: u64,
}

impl Layer<'_> {
    fn read<R: Read>(&mut self, reader: &mut TarReader<R>) -> Result<(), OciError> {
        while let Some(entry) = reader.next().map_err(|error| fault(error, self.what))? {
            self.budget.take_entries(1)?;
            let path = entry.path.clone();
            self.entry(entry, reader).map_err(|error| match error {
                Fault::Entry(reason) => OciError::entry(self.what, &path, reason),
                Fault::Read(error) => fault(error, self.what),
                Fault::Write(source) => OciError::Io { what: "write to", path: "the cache of layers".into(), source },
                Fault::Other(error) => error,
            })?;
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: TarEntry, reader: &mut TarReader<R>) -> Result<(), Fault> {
        let (path, hidden) = match Named::of(&entry.path)? {
            Named::Plain(path) => (path, None),
            Named::Whiteout(path) => (path, Some(EntryKind::Whiteout)),
            Named::Opaque(path) => (path, Some(EntryKind::Opaque)),
            Named::Ignored => return Ok(()),
        };
        if let Some(kind) = hidden {
            return self.add(Entry { path, meta: Meta::default(), kind });
        }
        if path.is_empty() && entry.kind != TarKind::Directory {
            return Err(EntryFault::Root.into());
        }
        let meta = meta(&entry)?;
        let kind = match entry.kind {
            TarKind::File(extents) => {
                self.content(&extents, reader)?;
                return self.writer.end_file(path, meta).map_err(Fault::Write);
            }
            TarKind::Directory => EntryKind::Directory,
            TarKind::Symlink(target) if target.is_empty() || target.len() > SYMLINK_BYTES_MAX => {
                return Err(EntryFault::Target.into());
            }
            TarKind::Symlink(target) if target.contains(&0) => return Err(EntryFault::Zero.into()),
            TarKind::Symlink(target) => EntryKind::Symlink(target),
            TarKind::Link(target) => EntryKind::Link(names(&target)?.join(&b'/')),
            TarKind::CharDevice(device) => EntryKind::CharDevice(device),
            TarKind::BlockDevice(device) => EntryKind::BlockDevice(device),
            TarKind::Fifo => EntryKind::Fifo,
        };
        self.add(Entry { path, meta, kind })
    }

    fn add(&mut self, entry: Entry) -> Result<(), Fault> {
        self.writer.add(&entry).map_err(Fault::Write)
    }

    fn content<R: Read>(&mut self, extents: &Extents, reader: &mut TarReader<R>) -> Result<(), Fault> {
        let stored: u64 = extents.list.iter().map(|(_, length)| length).sum();
        // What is stored is counted as it comes.
        self.budget.take_bytes(extents.size - stored)?;
        self.file_bytes += extents.size;
        self.writer.begin_file(extents.size);
        for &(mut offset, mut length) in &extents.list {
            while length > 0 {
                let some = usize::try_from(length).map_or(self.buffer.len(), |length| length.min(self.buffer.len()));
                let count = reader.read(&mut self.buffer[..some]).map_err(Fault::Read)?;
                if count == 0 {
                    return Err(Fault::Read(io::ErrorKind::UnexpectedEof.into()));
                }
                self.writer.content(offset, &self.buffer[..count]).map_err(Fault::Write)?;
                offset += count as u64;
                length -= count as u64;
            }
        }
        Ok(())
    }
}

fn meta(entry: &TarEntry) -> Result<Meta, EntryFault> {
    let id = |id: u64| u32::try_from(id).map_err(|_| EntryFault::Number);
    let mut xattrs = entry.xattrs.clone();
    xattrs.retain(|name, value| keep(name, value));
    if xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>() > ATTRIBUTE_BYTES_MAX {
        return Err(EntryFault::Attributes);
    }
    let device = match entry.kind {
        TarKind::CharDevice(device) | TarKind::BlockDevice(device) => device,
        _ => Device::default(),
    };
    if device.major > 0xfff || device.minor > 0xf_ffff {
        return Err(EntryFault::Number);
    }
    Ok(Meta { mode: entry.mode, uid: id(entry.uid)?, gid: id(entry.gid)?, mtime: entry.mtime, xattrs })
}

/// Attributes that a file system of Linux cannot have are left out, as container runtimes do. Those of an overlay would
/// be taken for its own by the guest's.
pub(super) fn keep(name: &[u8], value: &[u8]) -> bool {
    let of_overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    !of_overlay && check_attribute(name, value).is_ok()
}

enum Fault {
    Entry(EntryFault),
    Read(io::Error),
    Write(io::Error),
    Other(OciError),
}

impl From<EntryFault> for Fault {
    fn from(fault: EntryFault) -> Self {
        Self::Entry(fault)
    }
}

impl From<OciError> for Fault {
    fn from(error: OciError) -> Self {
        Self::Other(error)
    }
}

/// Takes what it reads from the budget.
struct Metered<'a, R> {
    inner: R,
    budget: &'a Budget,
    bytes: u64,
    exceeded: Option<OciError>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Err(exceeded) = self.budget.take_bytes(count as u64) {
            self.exceeded = Some(exceeded);
            return Err(io::Error::other("a limit is exceeded"));
        }
        self.bytes += count as u64;
        Ok(count)
    }
}

const BUFFER_BYTES: usize = 1 << 18;
/// Beside an inode.
const ATTRIBUTE_BYTES_MAX: usize = 200 << 10;
