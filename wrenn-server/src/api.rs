//! What speaks HTTP: it parses, asks the service, and maps what comes of it.

pub(crate) mod v1;
