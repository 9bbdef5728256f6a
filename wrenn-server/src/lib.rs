//! wrenn for operators: what `wrenn-server` does, for other programs to call.
#![warn(missing_docs)]

#[cfg(feature = "serve")]
mod api;
#[cfg(feature = "serve")]
pub mod memory;
#[cfg(feature = "serve")]
pub mod ops;
pub mod packages;
#[cfg(feature = "serve")]
mod proxy;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "serve")]
pub mod service;
pub mod setup;
#[cfg(feature = "serve")]
pub mod store;
#[cfg(feature = "serve")]
pub mod tls;
