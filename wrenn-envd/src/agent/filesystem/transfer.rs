//! A move that the kernel cannot do by a rename: to another file system, and of a directory of an overlay's base image.

use std::io;

use super::copying;
use crate::agent::{
    console::complain,
    disk::{removal, spot::Spot, temporary},
};

/// Copies `source` beside `destination`, puts the copy in place in one step, and removes `source`. One that fails before
/// that leaves all as it was.
pub(super) fn transfer(source: &Spot, destination: &Spot) -> io::Result<()> {
    let staging = Staging(destination.beside(temporary::random_name(PREFIX)?)?);
    copying::copy(source, &staging.0)?;
    staging.0.rename(destination)?;
    removal::remove(source)
}

/// A copy that goes unless it was renamed.
struct Staging(Spot);

impl Drop for Staging {
    fn drop(&mut self) {
        match removal::remove(&self.0) {
            // It is in place, or has not been made.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                complain(&format!("remove what a move left, {}: {error}", self.0.name().display()));
            }
            _ => {}
        }
    }
}

const PREFIX: &str = ".wrenn-move-";
