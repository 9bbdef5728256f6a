//! A crate as it is published.

use std::path::PathBuf;

/// A published crate.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: &'static str,
    /// Its files, unpacked from what is published.
    pub(super) directory: PathBuf,
}
