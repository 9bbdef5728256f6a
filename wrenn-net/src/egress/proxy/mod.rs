//! Connections by the proxy that a policy names.
//!
//! ```text
//!  name? ─▶ addresses ─▶ TCP ─▶ TLS, if it is within that ─▶ credentials: secrets ─▶ socks, or http ─▶ the guest's bytes
//!               └─────────┴───────────┴──────────────────────────┴─────────────────────┴──▶ NotMade
//! ```
//!
//! A proxy is told addresses, which the policy has decided on, and no names: what a name leads to is what wrenn has
//! resolved. Each step has a limit, and what goes wrong is the server's or the proxy's.

mod addresses;
mod credentials;
#[cfg(feature = "fuzzing")]
pub(super) mod fuzz;
mod http;
mod not_made;
mod reach;
mod socks;

pub(super) use not_made::NotMade;
pub(super) use reach::Proxies;
