//! A layer, written as its entries come.
//!
//! ```text
//! begin_file -> content ... -> end_file      data    content of files, each from the start of a block on; zeros are holes
//! add                                        small   content of short files, one behind the other
//!                                 finish ->  index   the entries
//! ```

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::erofs::{BLOCK, Meta};
use crate::oci::digest::Digest;
use crate::oci::entry::{Entry, EntryKind, Place, Stored};
use crate::oci::index::{self, Totals};

/// Writes the three files of a layer.
pub(super) struct LayerWriter {
    index: Summed,
    small: Summed,
    data: Data,
    entries: u64,
    file: Option<OpenFile>,
}

/// The file whose content is coming.
struct OpenFile {
    stored: Stored,
    /// Of a short one, which may have holes too.
    small: Vec<u8>,
}

impl LayerWriter {
    /// `directory` is empty.
    pub(super) fn create(directory: &Path) -> io::Result<Self> {
        let create = |name: &str| File::options().read(true).write(true).create_new(true).open(directory.join(name));
        let mut index = Summed::new(create(INDEX)?);
        index.write(&index::begin())?;
        let data = Data { file: create(DATA)?, buffer: Vec::new(), start: 0, end: 0, crc: 0 };
        Ok(Self { index, small: Summed::new(create(SMALL)?), data, entries: 0, file: None })
    }

    pub(super) fn add(&mut self, entry: &Entry) -> io::Result<()> {
        let mut bytes = Vec::new();
        index::encode(entry, &mut bytes);
        self.entries += 1;
        self.index.write(&bytes)
    }

    pub(super) fn begin_file(&mut self, size: u64) {
        let file = match usize::try_from(size) {
            Ok(bytes) if bytes <= SMALL_BYTES_MAX => {
                OpenFile { stored: Stored { size, place: Place::Small(self.small.bytes) }, small: vec![0; bytes] }
            }
            _ => {
                let start = self.data.end;
                self.data.end = (start + size).next_multiple_of(BLOCK);
                OpenFile { stored: Stored { size, place: Place::Data(start) }, small: Vec::new() }
            }
        };
        self.file = Some(file);
    }

    /// Takes content for an offset in the file. Offsets ascend, and stay within its size.
    pub(super) fn content(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("content of no file"))?;
        match file.stored.place {
            Place::Data(start) => self.data.write(start + offset, bytes),
            Place::Small(_) => {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                let place = file.small.get_mut(start..start + bytes.len());
                place.ok_or_else(|| io::Error::other("content beyond its file"))?.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    pub(super) fn end_file(&mut self, path: Vec<u8>, meta: Meta) -> io::Result<()> {
        let file = self.file.take().ok_or_else(|| io::Error::other("the end of no file"))?;
        self.small.write(&file.small)?;
        self.add(&Entry { path, meta, kind: EntryKind::File(file.stored) })
    }

    /// Writes what is not written yet. The files are not durable before they are published.
    pub(super) fn finish(mut self, blob: Digest, diff_id: Digest, unpacked_bytes: u64) -> io::Result<()> {
        let (data_bytes, data_crc) = self.data.finish()?;
        let (small_bytes, small_crc) = (self.small.bytes, self.small.crc);
        self.small.finish()?;
        let totals = Totals {
            entries: self.entries,
            data_bytes,
            data_crc,
            small_bytes,
            small_crc,
            blob,
            diff_id,
            unpacked_bytes,
        };
        self.index.write(&index::end(&totals))?;
        let crc = self.index.crc;
        self.index.write(&crc.to_le_bytes())?;
        self.index.finish()
    }
}

/// A file that is written from its start to its end, and its checksum.
struct Summed {
    out: BufWriter<File>,
    bytes: u64,
    crc: u32,
}

impl Summed {
    fn new(file: File) -> Self {
        Self { out: BufWriter::with_capacity(1 << 18, file), bytes: 0, crc: 0 }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.out.write_all(bytes)
    }

    fn finish(self) -> io::Result<()> {
        self.out.into_inner().map(drop).map_err(io::IntoInnerError::into_error)
    }
}

/// The file `data`. Its blocks of zeros are holes.
struct Data {
    file: File,
    /// What is not written yet, from `start` on, where a block begins.
    buffer: Vec<u8>,
    start: u64,
    /// The end of the last file.
    end: u64,
    /// Of the blocks that are not zero, each after its index.
    crc: u32,
}

impl Data {
    fn write(&mut self, position: u64, mut bytes: &[u8]) -> io::Result<()> {
        let gap = position.saturating_sub(self.start + self.buffer.len() as u64);
        if gap + self.buffer.len() as u64 >= BUFFER_BYTES as u64 {
            self.flush()?;
            self.start = position - position % BLOCK;
        }
        let filled = usize::try_from(position - self.start).map_err(io::Error::other)?;
        self.buffer.resize(filled, 0);
        while !bytes.is_empty() {
            let (some, rest) = bytes.split_at(bytes.len().min(BUFFER_BYTES - self.buffer.len()));
            self.buffer.extend(some);
            bytes = rest;
            if self.buffer.len() == BUFFER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Afterwards the buffer is empty and starts behind what was in it.
    fn flush(&mut self) -> io::Result<()> {
        let length = self.buffer.len().next_multiple_of(BLOCK_BYTES);
        self.buffer.resize(length, 0);
        let mut pending = 0..0;
        for (number, block) in self.buffer.chunks_exact(BLOCK_BYTES).enumerate() {
            let at = number * BLOCK_BYTES;
            if *block == ZEROS {
                self.file.write_all_at(&self.buffer[pending.clone()], self.start + pending.start as u64)?;
                pending = at + BLOCK_BYTES..at + BLOCK_BYTES;
                continue;
            }
            self.crc = block_crc(self.crc, self.start / BLOCK + number as u64, block);
            pending.end = at + BLOCK_BYTES;
        }
        self.file.write_all_at(&self.buffer[pending.clone()], self.start + pending.start as u64)?;
        self.start += length as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<(u64, u32)> {
        self.flush()?;
        self.file.set_len(self.end)?;
        Ok((self.end, self.crc))
    }
}

/// The checksum of a file's blocks, one further.
pub(super) fn block_crc(crc: u32, number: u64, block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &number.to_le_bytes()), block)
}

pub(super) const INDEX: &str = "index";
pub(super) const DATA: &str = "data";
pub(super) const SMALL: &str = "small";
pub(super) const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
const BLOCK_BYTES: usize = 4096;
const BUFFER_BYTES: usize = 256 * BLOCK_BYTES;
/// A longer file would waste less of a block of its own than it costs beside its inode.
const SMALL_BYTES_MAX: usize = 3072;
