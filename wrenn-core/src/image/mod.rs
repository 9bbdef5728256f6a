//! Images, which sandboxes boot from. An image has a kernel, an initramfs with the agent in it, a read-only base, and
//! the template of the drive that each sandbox writes.
//!
//! ```text
//! Image::builder -> ImageBuilder::build -> Image        images/<name>/vmlinuz    the distribution's kernel
//!                                            |                        initramfs  agent and kernel modules
//!                   Image::open -------------|                        base.*     shared by every sandbox: ext4, or EROFS
//!                                            |                        drive.ext4 sparse; copied for each sandbox
//!                   Image::renew <-----------+                        image.json written last
//! ```
//!
//! # Consistency
//!
//! A published image never changes. A build publishes a new directory by one rename, and files that are the same in
//! both are hard links. An image whose base is replaced is kept under its digest, since the drives of paused sandboxes
//! need that base.

mod build;
mod builder;
mod bundled;
mod candidates;
mod digest;
pub(crate) mod error;
mod ext4;
mod initramfs;
pub(crate) mod installed;
mod kernel;
mod kernel_package;
mod lookup;
mod manifest;
mod modules;
mod name;
mod oci_settings;
mod purl;
mod refresh;
mod removal;
mod rootfs;
mod scratch;
mod settings;
mod spdx;
mod staged;
mod step;
mod store;
mod tools;
pub(crate) mod vmlinux;

pub use crate::oci::package::{Package, PackageKind};
pub use candidates::{PackageChange, PackagePlan};
pub use error::{ImageError, PullError};
pub use installed::Image;
pub(crate) use oci_settings::is_reference;
pub use refresh::{NewLayer, RefreshPlan};
pub use settings::ImageBuilder;
pub use step::Step;
pub use tools::{Purpose, Requirement, requirements};
