//! TLS of the server's own, for clients that reach it by `https`.
//!
//! ```text
//!  two files of the operator's ──▶                              ┌── each connection
//!                                  certificate ──▶ acceptor ◀───┘
//!  authority of the server's own ─▶     ▲ each minute: a newer one?
//! ```

pub(crate) mod acceptor;
mod authority;
pub mod certificate;
