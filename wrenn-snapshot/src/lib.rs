//! The memory page flow: diffs, immutable generations and their store.
#![warn(missing_docs)]
mod data;
mod diff;
mod error;
pub mod extents;
mod files;
mod format;
mod generation;
mod id;
mod page;
mod pending;
mod source;
mod store;
pub use error::{Error, Result};
pub use format::{Damage, Space};
pub use generation::{Generation, SpaceStats};
pub use id::{GenerationId, ParseGenerationIdError};
pub use page::{PAGE_BYTES, PageIndex, PageRange, PageSize};
pub use pending::{BlobWriter, PendingGeneration, WriteReport};
pub use source::{ByteSource, FlatFile, GenerationReader, PageRun, PageSource};
pub use store::LocalStore;
