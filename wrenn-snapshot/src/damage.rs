//! What is wrong with a stored file.

use crate::extents::BadExtent;

/// What is wrong with a stored file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The file is not there.
    #[error("file is missing")]
    Absent,
    /// It is not this kind of file at all.
    #[error("not a file of this kind")]
    Magic,
    /// It was written in a version of the format that this program does not read.
    #[error("format version {0} is not supported")]
    Version(u32),
    /// The file is shorter or longer than it says, or than the file that names it says.
    #[error("length mismatch: {actual} bytes where {expected} belong")]
    Length {
        /// The length that the file should have, in bytes.
        expected: u64,
        /// The length that it has.
        actual: u64,
    },
    /// It is compressed in a way that this build leaves out.
    #[error("it is compressed with {0}: build wrenn-snapshot with its feature `{0}` to read it")]
    Codec(&'static str),
    /// A part of a data file does not decompress, or not to what was written.
    #[error("compressed chunk {0} is damaged")]
    Chunk(u32),
    /// Part of the file is not what was written.
    #[error("checksum mismatch in the {0}")]
    Checksum(&'static str),
    /// A page of a data file is not what was written.
    #[error("checksum mismatch in stored page {0}")]
    PageChecksum(u32),
    /// A number is beyond the cap that the format sets.
    #[error("{0} is over its limit")]
    Cap(&'static str),
    /// The checksums hold, and the contents still make no sense.
    #[error("{0}")]
    Contents(&'static str),
    /// The extent table is not an index.
    #[error("{0}")]
    Extents(BadExtent),
}
