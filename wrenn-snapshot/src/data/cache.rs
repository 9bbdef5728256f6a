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
