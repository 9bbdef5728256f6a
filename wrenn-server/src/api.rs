//! What clients send and get: wrenn's own API, and E2B's.

mod e2b;
mod identity;
pub(crate) mod router;
pub(crate) mod state;
mod text;
mod time;
mod v1;
