//! Connections that a policy's rules put something into.
//!
//! ```text
//!  guest ══ TLS, a leaf of this data directory's authority ══▶ session ══ TLS, the server's own ══▶ upstream
//!           authority                                         target, changes             servers
//! ```
//!
//! The server's handshake comes first, and the guest is then offered the protocol that the server speaks. So both
//! connections speak the same, and a request is passed on as it is but for its changes. A connection of the guest's has
//! one of the server's, and each ends with the other.

mod authority;
mod changes;
mod connection;
mod http;
mod interception;
mod interceptor;
mod line;
mod refused;
mod session;
mod target;
mod tasks;

pub use authority::Authority;
pub use interceptor::Interceptor;

pub(super) use connection::carry;
pub(super) use interception::Interception;
pub(super) use target::{Scheme, Target};
