//! System calls that no crate wraps well enough. The only modules here that hold unsafe code.

pub(crate) mod pagemap;
pub(crate) mod rights;
pub(crate) mod uffd;
