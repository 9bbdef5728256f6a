//! What a layer says of one name.

use crate::erofs::{Device, Meta, NAME_BYTES_MAX};
use crate::oci::error::EntryFault;

/// An entry of a layer, as its index has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The names from the root on, with slashes between. The root's is empty.
    pub(super) path: Vec<u8>,
    pub(super) meta: Meta,
    pub(super) kind: EntryKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryKind {
    File(Stored),
    Directory,
    Symlink(Vec<u8>),
    /// Another name of the file with this path.
    Link(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
    Socket,
    /// What lower layers have at the path is gone.
    Whiteout,
    /// What lower layers have in the directory is gone.
    Opaque,
}

/// A file's content in its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) size: u64,
    pub(super) place: Place,
}

/// Where the content starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the file `data`, at the start of a block.
    Data(u64),
    /// In the file `small`.
    Small(u64),
}

/// The names of a path. An absolute one is taken from the root on.
pub(super) fn names(path: &[u8]) -> Result<Vec<&[u8]>, EntryFault> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(EntryFault::Upward),
            name if name.len() > NAME_BYTES_MAX => return Err(EntryFault::NameLength),
            name if name.contains(&0) => return Err(EntryFault::Zero),
            name => names.push(name),
        }
    }
    if names.len() > DEPTH_MAX {
        return Err(EntryFault::Depth);
    }
    Ok(names)
}

/// What an archive's name stands for in a layer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    Plain(Vec<u8>),
    Whiteout(Vec<u8>),
    Opaque(Vec<u8>),
    /// Something of AUFS' own.
    Ignored,
}

impl Named {
    /// <https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts>
    pub(super) fn of(path: &[u8]) -> Result<Self, EntryFault> {
        let names = names(path)?;
        let Some((last, above)) = names.split_last() else { return Ok(Self::Plain(Vec::new())) };
        if *last == OPAQUE {
            return Ok(Self::Opaque(above.join(&b'/')));
        }
        if names.iter().any(|name| name.starts_with(AUFS)) {
            return Ok(Self::Ignored);
        }
        match last.strip_prefix(WHITEOUT) {
            Some(b"" | b"." | b"..") => Err(EntryFault::Whiteout),
            Some(hidden) => {
                let mut names = above.to_vec();
                names.push(hidden);
                Ok(Self::Whiteout(names.join(&b'/')))
            }
            None => Ok(Self::Plain(names.join(&b'/'))),
        }
    }
}

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const DEPTH_MAX: usize = 1024;
