//! `/files`: whole files in and out of the guest.

mod download;
mod target;
mod upload;

pub(super) use download::download;
pub(super) use upload::upload;
