//! The initramfs of the lab's machine: busybox, the modules, and a script to start with.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use cpio::newc::{self, ModeFileType};

/// The script that is its `/init`.
pub(super) const INIT: &str = include_str!("init.sh");

/// Writes the archive, with the module files of `order`, which are below `modules`.
pub(super) fn pack(out: impl Write, busybox: &Path, modules: &Path, order: &[&str]) -> anyhow::Result<()> {
    let mut archive = Archive { out, entries: 0 };
    for directory in DIRECTORIES {
        archive.add(directory, ModeFileType::Directory, &[], (0, 0))?;
    }
    archive.add("dev/console", ModeFileType::Char, &[], CONSOLE)?;
    let busybox = fs::read(busybox).with_context(|| format!("{} cannot be read", busybox.display()))?;
    archive.add("bin/busybox", ModeFileType::Regular, &busybox, (0, 0))?;
    archive.add("init", ModeFileType::Regular, INIT.as_bytes(), (0, 0))?;
    let mut names = String::new();
    for file in order {
        let module = fs::read(modules.join(file)).with_context(|| format!("module {file} cannot be read"))?;
        let name = file.rsplit('/').next().unwrap_or(file);
        names.push_str(name);
        names.push('\n');
        archive.add(&format!("modules/{name}"), ModeFileType::Regular, &module, (0, 0))?;
    }
    archive.add("modules/order", ModeFileType::Regular, names.as_bytes(), (0, 0))?;
    newc::trailer(archive.out)?.flush()?;
    Ok(())
}

struct Archive<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, path: &str, kind: ModeFileType, bytes: &[u8], (major, minor): (u32, u32)) -> io::Result<()> {
        self.entries += 1;
        let entry = newc::Builder::new(path).ino(self.entries).mode(0o755).set_mode_file_type(kind);
        let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut writer = entry.rdev_major(major).rdev_minor(minor).write(&mut self.out, size);
        writer.write_all(bytes)?;
        writer.finish().map(drop)
    }
}

const DIRECTORIES: [&str; 8] = ["bin", "dev", "proc", "sys", "base", "drive", "newroot", "modules"];
/// Its numbers, from Linux's `Documentation/admin-guide/devices.txt`. The kernel opens it for `/init`.
const CONSOLE: (u32, u32) = (5, 1);
