//! Kernel modules, which travel in the initramfs beside the agent.

use std::{fs::File, io, path::Path};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
};

use super::step::{BootError, Step as _};
use crate::agent::console::complain;

/// Loads what `directory/order` lists. A module that fails is named on the console, and the boot goes on: what needed it
/// fails under its own name.
pub(super) fn load(directory: &Path) -> Result<(), BootError> {
    let order = match std::fs::read_to_string(directory.join("order")) {
        // A kernel with its drivers built in needs none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.step("read /modules/order")?,
    };
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        if let Err(error) = load_one(&directory.join(name)) {
            complain(&format!("load module {name}: {error}"));
        }
    }
    Ok(())
}

fn load_one(path: &Path) -> io::Result<()> {
    match finit_module(File::open(path)?, c"", ModuleInitFlags::empty()) {
        // Loaded already, or built in.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
