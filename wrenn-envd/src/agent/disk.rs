//! What uploads, and calls on the tree of directories, both do on the disk.

pub(super) mod copy;
pub(super) mod metadata;
pub(super) mod temporary;
