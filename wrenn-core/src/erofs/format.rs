//! The bytes of superblock, inodes and directory entries.

use crate::erofs::tree::{Device, Kind, Meta, Time};

/// Bytes in a block.
pub(crate) const BLOCK: u64 = 4096;
pub(super) const BLOCK_BYTES: usize = 4096;
const BLOCK_BITS: u8 = 12;
/// An inode's number is its distance from the first one's block, in slots.
pub(super) const SLOT: u64 = 32;

/// What the superblock says.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    /// Of every inode in the short form.
    pub(super) time: Time,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
}

impl Superblock {
    /// Block 0.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; SUPERBLOCK_AT];
        put32(&mut out, MAGIC);
        put32(&mut out, 0);
        put32(&mut out, FEATURE_CHECKSUM);
        out.extend([BLOCK_BITS, 0]);
        put16(&mut out, self.root_nid);
        put64(&mut out, self.inodes);
        put64(&mut out, self.time.seconds.cast_unsigned());
        put32(&mut out, self.time.nanos);
        put32(&mut out, self.blocks);
        put32(&mut out, self.meta_block);
        // The rest is attributes that inodes share, a UUID, a name, and features: there are none.
        out.resize(BLOCK_BYTES, 0);
        // The kernel's is not inverted at the end.
        let checksum = !crc32c::crc32c(&out[SUPERBLOCK_AT..]);
        out[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        out
    }
}

/// What an inode's bytes say beside its [`Meta`].
#[derive(Debug)]
pub(super) struct Header<'a> {
    pub(super) meta: &'a Meta,
    pub(super) file_type: FileType,
    pub(super) form: Form,
    pub(super) inline: bool,
    pub(super) xattr_bytes: usize,
    pub(super) size: u64,
    pub(super) nlink: u32,
    /// The first block of the content, or a device's numbers.
    pub(super) at: u32,
    pub(super) number: u32,
}

/// How an inode is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// With the time of the superblock, 16 bits for the owners and 32 for the size.
    Compact,
    Extended,
}

impl Form {
    pub(super) fn of(meta: &Meta, size: u64, nlink: u32, time: Time) -> Self {
        let short = |id: u32| id <= u32::from(u16::MAX);
        let fits = short(meta.uid) && short(meta.gid) && short(nlink) && size <= u64::from(u32::MAX);
        if fits && meta.mtime == time { Self::Compact } else { Self::Extended }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Compact => 32,
            Self::Extended => 64,
        }
    }
}

impl Header<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.form.bytes());
        let layout = if self.inline { LAYOUT_INLINE } else { LAYOUT_PLAIN };
        put16(&mut out, u16::from(self.form == Form::Extended) | layout << 1);
        put16(&mut out, xattr_count(self.xattr_bytes));
        put16(&mut out, self.file_type.mode() | (self.meta.mode & 0o7777));
        match self.form {
            Form::Compact => {
                put16(&mut out, low16(self.nlink));
                put32(&mut out, u32::try_from(self.size).unwrap_or(u32::MAX));
                put32(&mut out, 0);
                put32(&mut out, self.at);
                put32(&mut out, self.number);
                put16(&mut out, low16(self.meta.uid));
                put16(&mut out, low16(self.meta.gid));
                put32(&mut out, 0);
            }
            Form::Extended => {
                put16(&mut out, 0);
                put64(&mut out, self.size);
                put32(&mut out, self.at);
                put32(&mut out, self.number);
                put32(&mut out, self.meta.uid);
                put32(&mut out, self.meta.gid);
                put64(&mut out, self.meta.mtime.seconds.cast_unsigned());
                put32(&mut out, self.meta.mtime.nanos);
                put32(&mut out, self.nlink);
                out.extend([0; 16]);
            }
        }
        out
    }
}

/// The area's length as an inode has it: a header of 12 bytes, then words of four.
fn xattr_count(bytes: usize) -> u16 {
    if bytes == 0 { 0 } else { u16::try_from((bytes - XATTR_HEADER_BYTES) / 4 + 1).unwrap_or(u16::MAX) }
}

/// The kinds of file, as directory entries number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileType {
    Regular = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

impl FileType {
    pub(super) fn of<C>(kind: &Kind<C>) -> Self {
        match kind {
            Kind::File { .. } => Self::Regular,
            Kind::Directory(_) => Self::Directory,
            Kind::Symlink(_) => Self::Symlink,
            Kind::CharDevice(_) => Self::CharDevice,
            Kind::BlockDevice(_) => Self::BlockDevice,
            Kind::Fifo => Self::Fifo,
            Kind::Socket => Self::Socket,
        }
    }

    fn mode(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
            Self::Symlink => 0o120_000,
        }
    }
}

impl Device {
    /// As Linux' `new_encode_dev` has it.
    pub(super) fn encode(self) -> u32 {
        (self.minor & 0xff) | ((self.major & 0xfff) << 8) | ((self.minor & 0xf_ff00) << 12)
    }
}

pub(super) fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend(value.to_le_bytes());
}

pub(super) fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

pub(super) fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_le_bytes());
}

/// Of a value that [`Form::of`] has found to fit.
fn low16(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

pub(super) const XATTR_HEADER_BYTES: usize = 12;
pub(super) const DIRENT_BYTES: usize = 12;
const SUPERBLOCK_AT: usize = 1024;
const CHECKSUM_AT: usize = SUPERBLOCK_AT + 4;
const MAGIC: u32 = 0xE0F5_E1E2;
const FEATURE_CHECKSUM: u32 = 1;
const LAYOUT_PLAIN: u16 = 0;
/// The last, incomplete block is beside the inode.
const LAYOUT_INLINE: u16 = 2;
