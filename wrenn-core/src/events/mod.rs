//! What happens to sandboxes.

pub(crate) mod guest;
