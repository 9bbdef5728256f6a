//! Container images, from where they are to a guest's base.
//!
//! ```text
//! Source ─▶ make_base ─▶ registry: manifest, configuration, layers   layers/DIGEST/data   content of files, in blocks
//!                    └─▶ convert: each layer as it comes      ─▶                   small  content of short files
//!                    └─▶ merge: layers to one tree                                 index  names and attributes
//!                    └─▶ package_list: which packages it has
//!                    └─▶ base: the content that is left, and EROFS around it
//! ```
//!
//! A layer is converted while it is downloaded: there is neither an archive nor an unpacked tree on disk, so no user
//! needs rights for it. Layers are kept by digest, and images share them. Where the file system can share blocks, the
//! bases share theirs with the layers.

mod base;
mod cache;
mod certificates;
mod convert;
#[cfg(test)]
mod convert_tests;
mod credentials;
pub(crate) mod decoder;
mod digest;
mod directory;
mod distribution;
mod entry;
mod error;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod identity;
mod index;
mod layer_writer;
mod limits;
mod manifest;
mod merge;
#[cfg(test)]
mod merge_tests;
mod options;
pub(crate) mod package;
mod package_database;
mod package_list;
#[cfg(test)]
mod package_list_tests;
mod parts;
mod pull;
#[cfg(test)]
mod pull_tests;
mod registry;
#[cfg(test)]
mod registry_tests;
mod rpm;
mod source;
mod sqlite;
mod stream;
pub(crate) mod tar_reader;
#[cfg(test)]
mod testing;

pub(crate) use distribution::Distribution;
pub(crate) use error::OciError;
pub(crate) use limits::Limits;
pub(crate) use manifest::ImageConfig;
pub(crate) use options::{Credentials, Progress, PullOptions};
pub(crate) use pull::{look, make_base, prune, resolve, verify};
pub(crate) use source::Source;
