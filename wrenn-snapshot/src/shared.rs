//! What every handle on a store has in common.

use std::sync::Arc;

use crate::{data::cache::DataFiles, root::Root};

/// A store's directory, and those of its data files that are open.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) root: Root,
    pub(crate) data_files: Arc<DataFiles>,
}
