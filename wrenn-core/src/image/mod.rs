//! What a sandbox boots from: a kernel, an initramfs with the agent in it, a read-only base, and the template of the
//! drive that each sandbox writes.
//!
//! ```text
//! Image::builder -> ImageBuilder::build -> Image        images/<name>/vmlinuz    the distribution's kernel
//!                                            |                        initramfs  agent and kernel modules
//!                   Image::open -------------|                        base.ext4  shared by every sandbox
//!                                            |                        drive.ext4 sparse; copied for each sandbox
//!                   Image::refresh <---------+                        image.json written last
//! ```
//!
//! # Consistency
//!
//! A published image never changes: a build publishes another directory by one rename, and the files that it did not
//! need to make again are links to the same ones. An image whose base is replaced stays under its digest, since paused
//! sandboxes have that base under their drives.

mod build;
mod builder;
mod digest;
pub(crate) mod error;
mod ext4;
mod initramfs;
pub(crate) mod installed;
mod kernel;
mod lookup;
mod manifest;
mod modules;
mod name;
mod rootfs;
mod settings;
mod step;
mod store;
mod tools;
pub(crate) mod vmlinux;

pub use error::ImageError;
pub use installed::Image;
pub use settings::ImageBuilder;
pub use step::Step;
pub use tools::{Purpose, Requirement, requirements};
