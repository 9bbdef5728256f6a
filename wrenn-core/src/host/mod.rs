//! The door and the registry: opening a data directory, choosing a VMM, creating sandboxes, and finding them again.

pub(crate) mod builder;
pub(crate) mod choice;
pub(crate) mod create;
pub(crate) mod doctor;
#[cfg(test)]
mod ends_tests;
pub(crate) mod ensure;
pub(crate) mod events;
pub(crate) mod filter;
pub(crate) mod handle;
pub(crate) mod images;
#[cfg(test)]
mod keeping_tests;
#[cfg(test)]
mod lifecycle_tests;
pub(crate) mod metrics;
pub(crate) mod shutdown;
#[cfg(test)]
mod spans_tests;
pub(crate) mod stored;
pub(crate) mod template_bases;
#[cfg(test)]
mod wake_tests;
