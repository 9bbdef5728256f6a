//! Data files: the packed pages of one generation each, and the headers that tell of them.

pub(crate) mod cache;
pub(crate) mod decoder;
pub(crate) mod file;
pub(crate) mod headers;
mod stored;
pub(crate) mod writer;
