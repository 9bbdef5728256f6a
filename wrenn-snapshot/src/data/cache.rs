//! The data files that are open now.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{data::file::DataFile, error::Result, id::GenerationId, root::Root, space::Space};

/// Data files that are open. They never change, so every reader of a generation shares one.
#[derive(Debug, Default)]
pub(crate) struct DataFiles(Mutex<HashMap<(GenerationId, Space), Weak<DataFile>>>);

impl DataFiles {
    pub(crate) fn open(&self, root: &Root, generation: GenerationId, space: Space) -> Result<Arc<DataFile>> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&(generation, space)).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = Arc::new(DataFile::open(root, generation, space)?);
        if files.len() == files.capacity() {
            files.retain(|_, file| file.strong_count() > 0);
        }
        files.insert((generation, space), Arc::downgrade(&file));
        Ok(file)
    }
}
