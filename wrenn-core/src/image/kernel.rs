//! The kernel, taken from Debian's package without installing it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::image::error::ImageError;
use crate::image::modules::{Module, ModuleTree};
use crate::image::tools::Tool;

/// A kernel package, unpacked.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) release: String,
    pub(super) vmlinuz: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// Unpacks the one kernel package in `packages` to `scratch/kernel`.
    pub(super) async fn unpack(packages: &Path, scratch: &Path) -> Result<Self, ImageError> {
        let package = only(packages, "kernel package", is_kernel_package)?;
        let tree = scratch.join("kernel");
        Tool::new("dpkg-deb").arg("--extract").arg(package).arg(&tree).run(|_| {}).await?;
        // Since Debian 13 packages ship their files under /usr.
        let modules = [tree.join("usr/lib/modules"), tree.join("lib/modules")];
        let modules = modules.iter().find(|path| path.is_dir());
        let modules = modules.ok_or_else(|| ImageError::Kernel("it has no modules".to_owned()))?;
        let modules = only(modules, "kernel release", |_| true)?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { vmlinuz: tree.join(format!("boot/vmlinuz-{release}")), release, modules })
    }

    /// The modules that a guest needs, in load order.
    pub(super) fn modules(&self) -> Result<Vec<Module>, ImageError> {
        ModuleTree::read(&self.modules)?.wanted()
    }
}

/// `linux-image-6.1.0-1-cloud-amd64_…_amd64.deb`, not the meta package `linux-image-cloud-amd64`.
fn is_kernel_package(name: &str) -> bool {
    name.strip_prefix("linux-image-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        && name.contains("-cloud-amd64_")
        && name.ends_with(".deb")
}

fn only(directory: &Path, what: &str, keep: fn(&str) -> bool) -> Result<PathBuf, ImageError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(ImageError::io("list", directory))? {
        let entry = entry.map_err(ImageError::io("list", directory))?;
        if keep(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => Err(ImageError::Kernel(format!("expected one {what}, found {}", found.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_is_not_a_kernel() {
        assert!(is_kernel_package("linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb"));
        assert!(!is_kernel_package("linux-image-cloud-amd64_6.1.192-2_amd64.deb"));
        assert!(!is_kernel_package("linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb"));
        assert!(!is_kernel_package("linux-base_4.12.1_all.deb"));
    }
}
