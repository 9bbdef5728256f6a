//! `/files`: whole files in and out of the guest.

mod download;
mod target;
mod temporary;
mod upload;

pub(super) use download::download;
pub(super) use temporary::{Upload, upload_of};
pub(super) use upload::upload;
