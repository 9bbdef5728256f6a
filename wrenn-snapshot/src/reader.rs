//! Reading a space of a generation.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::errno::Errno;

use crate::{
    data::{decoder::Decoder, file::DataFile},
    error::{Error, Result},
    extents::{ExtentIndex, Run, Storage},
    page::{PageIndex, bytes_of, whole_pages},
    source::{PageRun, PageSource, not_whole_pages, pages_in, past_the_end},
};

/// Reads a space of a generation, through its flat index.
///
/// Holds the data files of every generation that the index names open, so it stays readable whatever is collected.
/// Each page is checked against its checksum each time it is read.
#[derive(Debug)]
pub struct GenerationReader {
    index: Arc<ExtentIndex>,
    /// In the order of `index.generations()`.
    files: Vec<Arc<DataFile>>,
    /// A reader is one thread's as a rule, so nobody waits for it.
    decoder: Mutex<Decoder>,
}

impl Clone for GenerationReader {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.index), self.files.clone())
    }
}

impl GenerationReader {
    pub(crate) fn new(index: Arc<ExtentIndex>, files: Vec<Arc<DataFile>>) -> Self {
        Self { index, files, decoder: Mutex::default() }
    }

    /// Who holds which page.
    #[must_use]
    pub fn index(&self) -> &ExtentIndex {
        &self.index
    }

    /// Fills `buffer` with the pages from `first` on.
    ///
    /// # Errors
    /// `buffer` is not whole pages or reaches past the end, or a page cannot be read as it was written.
    pub fn read_at(&self, first: PageIndex, buffer: &mut [u8]) -> Result<()> {
        let mut page = first;
        let mut rest = whole_pages(buffer.len() as u64).map(|_| buffer).ok_or_else(not_whole_pages)?;
        while !rest.is_empty() {
            let run = self.locate(page, pages_in(rest))?;
            let (now, later) = rest.split_at_mut(bytes_of(run.pages));
            match run.storage {
                Storage::Zero => now.fill(0),
                Storage::Data { generation, offset } => {
                    self.files[generation as usize].read(offset, now, &mut self.decoder())?;
                }
            }
            page = PageIndex(page.0 + run.pages);
            rest = later;
        }
        Ok(())
    }

    /// Writes the whole space into `file`, whose contents are replaced; zeros become holes.
    ///
    /// Each page is checked before it is copied. The copy shares storage with the generation where the file system
    /// can do that. It is not synced.
    ///
    /// # Errors
    /// A page cannot be read as it was written, or `file` (which `path` names in the error) cannot be written.
    pub fn copy_into(&self, file: &File, path: &Path) -> Result<()> {
        let write_error = |source| Error::io("write", path, source);
        file.set_len(0).map_err(write_error)?;
        file.set_len(PageIndex(self.index.page_count()).byte_offset()).map_err(write_error)?;
        self.copy_over_zeros(file, path)
    }

    /// As [`copy_into`](Self::copy_into), into a file that has its length already, and nothing but zeros.
    ///
    /// # Errors
    /// As [`copy_into`](Self::copy_into).
    pub fn copy_over_zeros(&self, file: &File, path: &Path) -> Result<()> {
        let write_error = |source| Error::io("write", path, source);
        let mut buffer = vec![0; COPY_BYTES];
        for extent in self.index.extents() {
            let Storage::Data { generation, offset } = extent.storage else { continue };
            let data = &self.files[generation as usize];
            let mut done = 0;
            while done < extent.count {
                let pages = pages_in(&buffer).min(extent.count - done);
                let chunk = &mut buffer[..bytes_of(pages)];
                data.read(offset + done, chunk, &mut self.decoder())?;
                copy_chunk(data, offset + done, chunk, file, PageIndex(extent.start.0 + done)).map_err(write_error)?;
                done += pages;
            }
        }
        Ok(())
    }

    fn decoder(&self) -> MutexGuard<'_, Decoder> {
        self.decoder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locate(&self, page: PageIndex, pages_max: u32) -> Result<Run> {
        let run = self.index.lookup(page).ok_or_else(|| past_the_end(page))?;
        Ok(Run { pages: run.pages.min(pages_max), ..run })
    }
}

impl PageSource for GenerationReader {
    fn page_count(&self) -> u32 {
        self.index.page_count()
    }

    fn run<'a>(&'a self, first: PageIndex, pages_max: u32, scratch: &'a mut [u8]) -> Result<PageRun<'a>> {
        let run = self.locate(first, pages_max)?;
        match run.storage {
            Storage::Zero => Ok(PageRun::Zero(run.pages)),
            Storage::Data { generation, offset } => {
                let pages = run.pages.min(pages_in(scratch));
                let bytes = &mut scratch[..bytes_of(pages)];
                self.files[generation as usize].read(offset, bytes, &mut self.decoder())?;
                Ok(PageRun::Data(bytes))
            }
        }
    }
}

/// Copies checked pages from one file to the same pages' place in another, inside the kernel if it can.
fn copy_chunk(data: &DataFile, offset: u32, chunk: &[u8], to: &File, page: PageIndex) -> std::io::Result<()> {
    let Some(from) = data.plain() else { return to.write_all_at(chunk, page.byte_offset()) };
    let mut from_offset = i64::try_from(PageIndex(offset).byte_offset()).map_err(std::io::Error::other)?;
    let mut to_offset = i64::try_from(page.byte_offset()).map_err(std::io::Error::other)?;
    let mut left = chunk.len();
    while left > 0 {
        match nix::fcntl::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), left) {
            Ok(0) | Err(Errno::EXDEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                let done = chunk.len() - left;
                return to.write_all_at(&chunk[done..], page.byte_offset() + done as u64);
            }
            Ok(copied) => left -= copied.min(left),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Large enough that a system call costs nothing beside the copy.
const COPY_BYTES: usize = 1 << 20;
