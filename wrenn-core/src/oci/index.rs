//! The bytes of a layer's `index`: its entries, and then what they are in sum.
//!
//! All numbers are little-endian. A string is its length in 32 bits and its bytes.
//!
//! ```text
//! "wrennlyr" version:u32 { path mode:u16 uid:u32 gid:u32 seconds:i64 nanos:u32 xattrs:u32 {name value} kind:u8 ... }
//! totals crc32c:u32 of all before
//! ```

use std::collections::BTreeMap;

use crate::erofs::{Device, Meta, Time};
use crate::oci::digest::Digest;
use crate::oci::entry::{Entry, EntryKind, Place, Stored};

/// What a layer comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) entries: u64,
    pub(super) data_bytes: u64,
    pub(super) data_crc: u32,
    pub(super) small_bytes: u64,
    pub(super) small_crc: u32,
    /// Of the archive as it was compressed, and of the archive.
    pub(super) blob: Digest,
    pub(super) diff_id: Digest,
    /// What the layer counts against the limit: the archive, or its files if they are larger.
    pub(super) unpacked_bytes: u64,
}

/// What an index starts with.
pub(super) fn begin() -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out
}

pub(super) fn encode(entry: &Entry, out: &mut Vec<u8>) {
    let meta = &entry.meta;
    string(out, &entry.path);
    out.extend(meta.mode.to_le_bytes());
    out.extend(meta.uid.to_le_bytes());
    out.extend(meta.gid.to_le_bytes());
    out.extend(meta.mtime.seconds.to_le_bytes());
    out.extend(meta.mtime.nanos.to_le_bytes());
    length(out, meta.xattrs.len());
    for (name, value) in &meta.xattrs {
        string(out, name);
        string(out, value);
    }
    let numbers = |out: &mut Vec<u8>, kind: u8, device: &Device| {
        out.push(kind);
        out.extend(device.major.to_le_bytes());
        out.extend(device.minor.to_le_bytes());
    };
    match &entry.kind {
        EntryKind::File(Stored { size, place }) => {
            let (kind, offset) = match place {
                Place::Data(offset) => (0, offset),
                Place::Small(offset) => (1, offset),
            };
            out.push(kind);
            out.extend(size.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        EntryKind::Directory => out.push(2),
        EntryKind::Symlink(target) => {
            out.push(3);
            string(out, target);
        }
        EntryKind::Link(target) => {
            out.push(4);
            string(out, target);
        }
        EntryKind::CharDevice(device) => numbers(out, 5, device),
        EntryKind::BlockDevice(device) => numbers(out, 6, device),
        EntryKind::Fifo => out.push(7),
        EntryKind::Socket => out.push(8),
        EntryKind::Whiteout => out.push(9),
        EntryKind::Opaque => out.push(10),
    }
}

/// What an index ends with, but for its checksum.
pub(super) fn end(totals: &Totals) -> Vec<u8> {
    let mut out = Vec::with_capacity(TOTALS_BYTES);
    out.extend(totals.entries.to_le_bytes());
    out.extend(totals.data_bytes.to_le_bytes());
    out.extend(totals.data_crc.to_le_bytes());
    out.extend(totals.small_bytes.to_le_bytes());
    out.extend(totals.small_crc.to_le_bytes());
    out.extend(totals.blob.as_bytes());
    out.extend(totals.diff_id.as_bytes());
    out.extend(totals.unpacked_bytes.to_le_bytes());
    out
}

/// Reads a whole index. `None` where it is not one that [`encode`] wrote.
pub(super) fn decode(bytes: &[u8]) -> Option<(Vec<Entry>, Totals)> {
    let (rest, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if crc32c::crc32c(rest).to_le_bytes() != crc {
        return None;
    }
    let mut cursor = Cursor(rest.strip_prefix(&MAGIC)?);
    if cursor.u32()? != VERSION {
        return None;
    }
    let (entries, totals) = cursor.0.split_at_checked(cursor.0.len().checked_sub(TOTALS_BYTES)?)?;
    let totals = Cursor(totals).totals()?;
    let mut cursor = Cursor(entries);
    let mut entries = Vec::new();
    while !cursor.0.is_empty() {
        entries.push(cursor.entry()?);
    }
    (entries.len() as u64 == totals.entries).then_some((entries, totals))
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (string, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(string.to_vec())
    }

    fn device(&mut self) -> Option<Device> {
        Some(Device { major: self.u32()?, minor: self.u32()? })
    }

    fn stored(&mut self, place: impl FnOnce(u64) -> Place) -> Option<EntryKind> {
        Some(EntryKind::File(Stored { size: self.u64()?, place: place(self.u64()?) }))
    }

    fn entry(&mut self) -> Option<Entry> {
        let path = self.string()?;
        let mode = self.array().map(u16::from_le_bytes)?;
        let (uid, gid) = (self.u32()?, self.u32()?);
        let mtime = Time { seconds: self.array().map(i64::from_le_bytes)?, nanos: self.u32()? };
        let mut xattrs = BTreeMap::new();
        for _ in 0..self.u32()? {
            xattrs.insert(self.string()?, self.string()?);
        }
        let [kind] = self.array()?;
        let kind = match kind {
            0 => self.stored(Place::Data)?,
            1 => self.stored(Place::Small)?,
            2 => EntryKind::Directory,
            3 => EntryKind::Symlink(self.string()?),
            4 => EntryKind::Link(self.string()?),
            5 => EntryKind::CharDevice(self.device()?),
            6 => EntryKind::BlockDevice(self.device()?),
            7 => EntryKind::Fifo,
            8 => EntryKind::Socket,
            9 => EntryKind::Whiteout,
            10 => EntryKind::Opaque,
            _ => return None,
        };
        Some(Entry { path, meta: Meta { mode, uid, gid, mtime, xattrs }, kind })
    }

    fn totals(&mut self) -> Option<Totals> {
        Some(Totals {
            entries: self.u64()?,
            data_bytes: self.u64()?,
            data_crc: self.u32()?,
            small_bytes: self.u64()?,
            small_crc: self.u32()?,
            blob: Digest::from_bytes(self.array()?),
            diff_id: Digest::from_bytes(self.array()?),
            unpacked_bytes: self.u64()?,
        })
    }
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    length(out, bytes.len());
    out.extend(bytes);
}

/// Nothing in an index is near 4 GiB: names, targets and attributes have limits.
fn length(out: &mut Vec<u8>, length: usize) {
    out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

const MAGIC: [u8; 8] = *b"wrennlyr";
const VERSION: u32 = 1;
const TOTALS_BYTES: usize = 8 + 8 + 4 + 8 + 4 + 32 + 32 + 8;
