//! The memory page flow of a microVM: what its guest writes is found, packed, kept, and served again when touched.
//!
//! ```text
//!  the guest writes ──► DirtyTracker ──► PendingGeneration ──► LocalStore
//!         ▲               (dirty)         (diff, format)      (generations)
//!         │                                                        │
//!  PageServer ◄──────────── PageSource ◄──── GenerationReader ◄────┘
//!   (queue) ▲                (source)            (extents)
//!      │    └─ WorkingSet: what an earlier restore touched, read ahead
//!      └─────► (working_set)
//! ```
//!
//! A pause costs what was written: the kernel marks written pages ([`arm`], [`DirtyTracker`]), and a new [`Generation`]
//! stores those alone. A resume costs what is touched: a [`PageServer`] puts pages in place when the guest first wants
//! them, and those that an earlier restore touched ([`WorkingSet`]) before it does. A generation's index is flat over all
//! of its ancestors, so reading a page is one binary search and one read, however long the lineage is; and what is stored
//! is checked each time that it is read.
//!
//! Everything here blocks, and one thread serves one VM.
//!
//! # A pause, and a resume
//! ```
//! use wrenn_snapshot::{LocalStore, PAGE_BYTES, PageIndex, PageRange, Space};
//!
//! let dir = tempfile::tempdir()?;
//! let store = LocalStore::open(dir.path())?;
//! let memory = vec![42; 16 * PAGE_BYTES];
//!
//! // Pause: store the pages that were written. Dropping `pending` instead would leave no trace.
//! let mut pending = store.begin(None)?;
//! pending.write_dirty(Space::Memory, &memory, &[PageRange::new(3, 2)])?;
//! let generation = pending.publish(b"whatever the caller needs to resume")?;
//! assert_eq!(generation.written_bytes(), 2 * PAGE_BYTES as u64);
//!
//! // Resume: a page server reads through this. Here, the page is read by hand.
//! let mut page = vec![0; PAGE_BYTES];
//! generation.reader(Space::Memory)?.read_at(PageIndex(4), &mut page)?;
//! assert_eq!(page, vec![42; PAGE_BYTES]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![warn(missing_docs)]

mod affinity;
mod arm;
mod background;
mod blob_writer;
mod byte_source;
mod chunks;
mod collect;
mod compact;
mod compression;
mod counters;
mod damage;
mod data;
mod diff;
mod dirty;
mod disk;
mod error;
pub mod extents;
mod fill;
mod flat_file;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod generation;
mod hand_over;
mod hold;
mod id;
mod memory_file;
mod new_file;
mod options;
mod packer;
mod page;
mod page_log;
mod page_set;
mod pending;
mod queue;
mod reach;
mod reader;
mod region;
mod resident;
mod root;
#[cfg(test)]
#[path = "../tests/seed/mod.rs"]
mod seed;
mod segments;
mod server;
mod shared;
mod sidecar;
mod source;
mod space;
mod space_writer;
mod stop;
mod store;
mod sweep;
mod sys;
mod temp_dir;
mod touched;
mod usage;
mod working_set;
mod written;

pub use arm::{adopt, arm, arm_file, arm_private};
pub use blob_writer::BlobWriter;
pub use byte_source::ByteSource;
pub use collect::{Collected, DamagedGeneration};
pub use compact::{CompactPolicy, Compaction};
pub use compression::Compression;
pub use counters::{RestoreReport, ServeCounters};
pub use damage::Damage;
pub use dirty::DirtyTracker;
pub use error::{Error, Result};
pub use flat_file::FlatFile;
pub use generation::{Generation, SpaceStats};
pub use hand_over::HandOver;
pub use hold::held::HeldPages;
pub use id::{GenerationId, ParseGenerationIdError};
pub use memory_file::MemoryFile;
pub use options::{OnceResident, Populate, ServeOptions, Tracking};
pub use page::{PAGE_BYTES, PageIndex, PageRange, PageSize, ReadPages};
pub use page_log::PageLog;
pub use pending::PendingGeneration;
pub use reader::GenerationReader;
pub use region::{Granule, Region};
pub use server::{EndReason, PageServer, ServeEnd};
pub use sidecar::Sidecar;
pub use source::{PageRun, PageSource};
pub use space::Space;
pub use space_writer::{SpaceWriter, WriteReport};
pub use stop::StopHandle;
pub use store::LocalStore;
pub use sys::uffd::{Features, Uffd, create as create_uffd};
pub use touched::TouchedPages;
pub use working_set::{WorkingSet, format::WorkingSetDamage};

/// The example of the README is a test, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
