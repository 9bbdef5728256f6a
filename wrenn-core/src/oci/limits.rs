//! How much of an image is taken.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::oci::error::OciError;

/// What an image may come to. A hostile one is refused before it fills the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Of all layers together, unpacked. Holes count. Default 64 GiB.
    pub(crate) unpacked_bytes: u64,
    /// Of all layers together. Default 4 million; each takes some 200 bytes of memory.
    pub(crate) entries: u64,
    /// Default 512.
    pub(crate) layers: usize,
    /// Of a manifest, an index or a configuration. Default 8 MiB.
    pub(crate) manifest_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { unpacked_bytes: 64 << 30, entries: 4_000_000, layers: 512, manifest_bytes: 8 << 20 }
    }
}

/// What is left of the limits, for all layers of an image.
#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, bytes: AtomicU64::new(limits.unpacked_bytes), entries: AtomicU64::new(limits.entries) }
    }

    pub(super) fn take_bytes(&self, count: u64) -> Result<(), OciError> {
        let limit = || OciError::Limit { what: "the image, unpacked,".to_owned(), limit: self.limits.unpacked_bytes };
        take(&self.bytes, count).then_some(()).ok_or_else(limit)
    }

    pub(super) fn take_entries(&self, count: u64) -> Result<(), OciError> {
        let limit =
            || OciError::Limit { what: "the number of the image's entries".to_owned(), limit: self.limits.entries };
        take(&self.entries, count).then_some(()).ok_or_else(limit)
    }
}

fn take(left: &AtomicU64, count: u64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count)).is_ok()
}
