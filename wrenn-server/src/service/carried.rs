//! Answers that are a guest's and not the server's own.

/// Marks the answer to a request that was for a port of a sandbox, as an extension of that answer.
#[derive(Debug, Clone, Copy)]
pub struct Carried;
