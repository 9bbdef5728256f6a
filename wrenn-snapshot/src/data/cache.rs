//! The data files that are open now.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{data::file::DataFile, error::Result, id::GenerationId, root::Root, space::Space};

/// Data files that are open. They never change, so every reader of a generation shares one.
///
/// Each has a lock of its own, so that one that is slow to open keeps nobody from the others.
#[derive(Debug, Default)]
pub(crate) struct DataFiles(Mutex<HashMap<(GenerationId, Space), Arc<Cell>>>);

/// Locked while the file is opened.
type Cell = Mutex<Weak<DataFile>>;

impl DataFiles {
    pub(crate) fn open(&self, root: &Root, generation: GenerationId, space: Space) -> Result<Arc<DataFile>> {
        let cell = self.cell((generation, space));
        let mut known = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = known.upgrade() {
            return Ok(file);
        }
        let file = Arc::new(DataFile::open(root, generation, space)?);
        *known = Arc::downgrade(&file);
        Ok(file)
    }

    /// Those of several generations, in their order. Each is a few reads that wait for the disk, so where they are many some
    /// are opened at once.
    pub(crate) fn open_all(
        &self,
        root: &Root,
        generations: &[GenerationId],
        space: Space,
    ) -> Result<Vec<Arc<DataFile>>> {
        let open = |ids: &[GenerationId]| ids.iter().map(|id| self.open(root, *id, space)).collect::<Result<Vec<_>>>();
        let (mine, others) = generations.split_at(generations.len().min(ONE_AFTER_ANOTHER));
        if others.is_empty() {
            return open(mine);
        }
        std::thread::scope(|scope| {
            let each = others.len().div_ceil(THREADS_MAX).max(ONE_AFTER_ANOTHER);
            let begin = |ids| std::thread::Builder::new().spawn_scoped(scope, move || open(ids));
            // Where there is no thread to be had, this one opens them.
            let begun: Vec<_> = others.chunks(each).map(|ids| (ids, begin(ids).ok())).collect();
            let mut files = open(mine)?;
            for (ids, thread) in begun {
                let opened = thread.map_or_else(|| Ok(open(ids)), std::thread::ScopedJoinHandle::join);
                files.extend(opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok(files)
        })
    }

    fn cell(&self, key: (GenerationId, Space)) -> Arc<Cell> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cells.len() == cells.capacity() {
            // One that nobody else has is not locked.
            cells.retain(|_, cell| Arc::strong_count(cell) > 1 || is_open(cell));
        }
        Arc::clone(cells.entry(key).or_default())
    }
}

fn is_open(cell: &Cell) -> bool {
    cell.lock().unwrap_or_else(PoisonError::into_inner).strong_count() > 0
}

/// From the page cache, opening 64 takes a tenth longer so than on one thread (1.15 ms instead of 1.03, unoptimized). Where
/// each read waits for a disk, it is for 16 that a resume waits and not for 64.
const ONE_AFTER_ANOTHER: usize = 16;
const THREADS_MAX: usize = 7;
