//! A directory's content: blocks, each with entries and then their names, all in the order of the names' bytes.

use crate::erofs::format::{BLOCK, BLOCK_BYTES, DIRENT_BYTES, FileType, put16, put64};

/// An entry, with the number of its inode.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: FileType,
}

/// The bytes that a directory takes. `names` are in order.
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut full, mut used) = (0, 0);
    for name in names {
        let needed = DIRENT_BYTES + name.len();
        if used + needed > BLOCK_BYTES {
            full += 1;
            used = 0;
        }
        used += needed;
    }
    full * BLOCK + used as u64
}

/// The bytes of a directory. The last block ends with its last name.
pub(super) fn encode(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
        let (block, others) = rest.split_at(fitting(rest));
        let mut name_at = block.len() * DIRENT_BYTES;
        for entry in block {
            put64(&mut out, entry.nid);
            put16(&mut out, u16::try_from(name_at).unwrap_or(u16::MAX));
            out.extend([entry.file_type as u8, 0]);
            name_at += entry.name.len();
        }
        block.iter().for_each(|entry| out.extend(entry.name));
        rest = others;
    }
    out
}

/// How many entries a block has room for.
fn fitting(entries: &[Entry<'_>]) -> usize {
    let mut used = 0;
    let fits = |entry: &&Entry<'_>| {
        used += DIRENT_BYTES + entry.name.len();
        used <= BLOCK_BYTES
    };
    entries.iter().take_while(fits).count()
}
