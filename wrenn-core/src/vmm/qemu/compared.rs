//! Finds the pages that a guest wrote to lazily restored memory where the kernel does not track them (before Linux
//! 5.19).
//!
//! A page that the guest never touched is a hole in the file of its memory, and is unchanged. All other pages are
//! compared with the snapshot that the guest was restored from.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use wrenn_snapshot::{Generation, GenerationReader, PAGE_BYTES, PageIndex, PageRange, Space};

use crate::error::{BoxError, Error, Result};

/// The memory of a restored guest, and the pages of it that are known to be written.
#[derive(Debug)]
pub(super) struct ComparedMemory {
    memory: File,
    before: GenerationReader,
    /// Pages that an earlier comparison found to be written. A later snapshot has other contents of them than `before`.
    /// So they always count as written, even where the guest has written the old contents back.
    written: Vec<bool>,
}

impl ComparedMemory {
    pub(super) fn new(memory: File, restored_from: &Generation) -> Result<Arc<Mutex<Self>>> {
        let before = restored_from.reader(Space::Memory)?;
        Ok(Arc::new(Mutex::new(Self { memory, before, written: Vec::new() })))
    }

    /// The pages of a stopped guest's memory that differ from the earlier snapshots, as sorted and separate ranges.
    pub(super) fn find(&mut self) -> Result<Vec<PageRange>> {
        let memory = &self.memory;
        let len_bytes = memory.metadata().map_err(|e| failed(e.into()))?.len();
        self.written.resize(usize::try_from(len_bytes / PAGE_LEN).unwrap_or(usize::MAX), false);
        let (mut now, mut before) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        let mut at = 0;
        while let Some((start, end)) = segment(memory, at).map_err(|e| failed(e.into()))? {
            let mut chunk = start;
            while chunk < end {
                let len = usize::try_from(end - chunk).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
                memory.read_exact_at(&mut now[..len], chunk).map_err(|e| failed(e.into()))?;
                let first = u32::try_from(chunk / PAGE_LEN).map_err(|e| failed(e.into()))?;
                self.before.read_at(PageIndex(first), &mut before[..len])?;
                let pages = now[..len].chunks(PAGE_BYTES).zip(before[..len].chunks(PAGE_BYTES));
                for (written, (now, before)) in self.written[first as usize..].iter_mut().zip(pages) {
                    *written |= now != before;
                }
                chunk += len as u64;
            }
            at = end;
        }
        Ok(self.ranges())
    }

    fn ranges(&self) -> Vec<PageRange> {
        let mut ranges: Vec<PageRange> = Vec::new();
        for (page, _) in self.written.iter().enumerate().filter(|(_, written)| **written) {
            let page = u32::try_from(page).unwrap_or(u32::MAX);
            match ranges.last_mut() {
                Some(last) if last.end() == u64::from(page) => last.count += 1,
                _ => ranges.push(PageRange::new(page, 1)),
            }
        }
        ranges
    }
}

/// The next allocated part of a file, in bytes, from `at` on. A memfd's is whole pages.
fn segment(file: &File, at: u64) -> Result<Option<(u64, u64)>, Errno> {
    let seek = |at: u64, whence| lseek(file, i64::try_from(at).unwrap_or(i64::MAX), whence).map(i64::unsigned_abs);
    match seek(at, Whence::SeekData) {
        Ok(start) => Ok(Some((start, seek(start, Whence::SeekHole)?))),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn failed(source: BoxError) -> Error {
    Error::failed("compare the guest's memory with its snapshot")(source)
}

const PAGE_LEN: u64 = PAGE_BYTES as u64;
/// 256 KiB: what was read is still in the processor's cache when it is compared.
const CHUNK_BYTES: usize = 64 * PAGE_BYTES;

#[cfg(test)]
mod tests {
    use wrenn_snapshot::LocalStore;

    use super::*;
    use crate::vmm::memory::GuestMemory;

    const PAGES: u32 = 200;
    const LEN_BYTES: usize = PAGES as usize * PAGE_BYTES;

    fn page(file: &File, number: u64, content: u8) {
        file.write_all_at(&[content; PAGE_BYTES], number * PAGE_LEN).unwrap();
    }

    #[test]
    fn what_was_touched_is_compared_and_what_was_not_is_the_snapshots() {
        let dir = tempfile::tempdir().unwrap();
        let mut pending = LocalStore::open(dir.path()).unwrap().begin(None).unwrap();
        let all = [PageRange::new(0, PAGES)];
        pending.write_dirty(Space::Memory, &[7; LEN_BYTES], &all).unwrap();
        pending.write_dirty(Space::Drive, &[1; PAGE_BYTES], &[PageRange::new(0, 1)]).unwrap();
        let generation = pending.publish(b"").unwrap();
        let memory = GuestMemory::create(LEN_BYTES).unwrap();
        let file = File::from(memory.fd().try_clone_to_owned().unwrap());
        let compared = ComparedMemory::new(file.try_clone().unwrap(), &generation).unwrap();
        let mut compared = compared.lock().unwrap();
        assert_eq!(compared.find().unwrap(), [], "nothing was touched");
        // Read alone; written; zeroed; across a chunk's end.
        for (number, content) in [(3, 7), (5, 8), (6, 0), (63, 1), (64, 2), (199, 9)] {
            page(&file, number, content);
        }
        let written = [PageRange::new(5, 2), PageRange::new(63, 2), PageRange::new(199, 1)];
        assert_eq!(compared.find().unwrap(), written);
        // Written back: the snapshot that was taken meanwhile has something else.
        page(&file, 5, 7);
        assert_eq!(compared.find().unwrap(), written);
    }
}
