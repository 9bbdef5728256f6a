//! What uploads, and calls on the tree of directories, both do on the disk.
//!
//! A path is followed by name once, to a [`spot::Spot`] or an open file. From there on everything goes by descriptors: a
//! user of the guest may put a link in the place of any name in the user's own directories at any time, and the agent may be
//! root.

pub(super) mod cleanup;
pub(super) mod copy;
pub(super) mod descent;
pub(super) mod metadata;
pub(super) mod opened;
pub(super) mod removal;
pub(super) mod spelling;
pub(super) mod spot;
pub(super) mod temporary;
pub(super) mod threads;
