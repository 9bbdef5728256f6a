//! One control group, which is a directory.

use std::{fs, io, path::Path};

/// Makes a group. One that is there already is taken.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Lets the groups below `parent` have limits. One controller at a time: a kernel that lacks one refuses them all.
pub(super) fn delegate(parent: &Path, controllers: &[&str]) {
    for controller in controllers {
        let _ = fs::write(parent.join("cgroup.subtree_control"), controller);
    }
}

/// A limit is a kindness to the agent, which some kernels cannot do.
pub(super) fn limit(directory: &Path, file: &str, value: u64) {
    let _ = fs::write(directory.join(file), value.to_string());
}
