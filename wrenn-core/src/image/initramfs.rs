//! The initramfs: the agent as `/init`, the modules beside it, and where it mounts things.
//!
//! ```text
//! /init             the agent
//! /modules/order    file names, one a line, in load order
//! /modules/*.ko
//! /base /drive /newroot /dev /proc /sys     mount points
//! /dev/console      so that the kernel opens it for /init
//! /dev/null         for an /init whose kernel has no console
//! ```

use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use cpio::newc::{self, ModeFileType};
use object::LittleEndian;
use object::elf::{EM_X86_64, FileHeader64};
use object::read::elf::FileHeader as _;

use crate::image::bundled;
use crate::image::digest;
use crate::image::error::ImageError;
use crate::image::modules::Module;
use crate::program::is_dynamic;

/// A binary that can be a guest's first process.
#[derive(Debug)]
pub(super) struct Init {
    bytes: Vec<u8>,
    pub(super) sha256: String,
    /// Whether the caller named it. Such an agent is not replaced by the library's.
    pub(super) own: bool,
}

impl Init {
    /// The agent that comes with the library.
    pub(super) fn bundled() -> Result<Self, ImageError> {
        let bytes = bundled::bytes()?;
        let sha256 = digest::of_bytes(&bytes);
        Ok(Self { bytes, sha256, own: false })
    }

    /// Reads and checks the agent's binary: x86-64, and static, since the initramfs has no loader for it.
    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        let refuse = |reason: String| ImageError::Agent { path: path.to_owned(), reason };
        let bytes = std::fs::read(path).map_err(ImageError::io("read", path))?;
        check(&bytes).map_err(refuse)?;
        let sha256 = digest::of_bytes(&bytes);
        Ok(Self { bytes, sha256, own: true })
    }
}

fn check(elf: &[u8]) -> Result<(), String> {
    let describe = |error: object::Error| error.to_string();
    let header = FileHeader64::<LittleEndian>::parse(elf).map_err(describe)?;
    if header.e_machine(LittleEndian) != EM_X86_64 {
        return Err("it is not for x86-64".to_owned());
    }
    match is_dynamic(elf).map_err(describe)? {
        true => Err("it is linked dynamically, and must be static".to_owned()),
        false => Ok(()),
    }
}

/// Writes the archive, in the `newc` format that the kernel unpacks.
pub(super) fn pack(init: &Init, modules: &[Module], out: impl Write) -> io::Result<()> {
    let mut archive = Archive { out, entries: 0 };
    for directory in DIRECTORIES {
        archive.entry(directory, ModeFileType::Directory, 0o755, &[])?;
    }
    for (device, numbers) in DEVICES {
        archive.add(device, ModeFileType::Char, 0o600, &[], numbers)?;
    }
    archive.entry("init", ModeFileType::Regular, 0o755, &init.bytes)?;
    archive.modules(modules)?;
    newc::trailer(archive.out)?.flush()
}

/// Writes an archive of modules alone.
pub(super) fn pack_modules(modules: &[Module], out: impl Write) -> io::Result<()> {
    let mut archive = Archive { out, entries: 0 };
    archive.modules(modules)?;
    newc::trailer(archive.out)?.flush()
}

/// The modules of an archive that [`pack`] or [`pack_modules`] made, in load order.
pub(super) fn modules(archive: &[u8]) -> io::Result<Vec<Module>> {
    let mut rest = archive;
    let mut files = Vec::new();
    let mut order = String::new();
    loop {
        let mut entry = newc::Reader::new(rest)?;
        if entry.entry().is_trailer() {
            break;
        }
        let path = PathBuf::from(entry.entry().name());
        if path == Path::new(ORDER) {
            entry.read_to_string(&mut order)?;
        } else if path.starts_with("modules") && path.extension().is_some_and(|end| end == "ko") {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push(Module { file_name, bytes });
        }
        rest = entry.finish()?;
    }
    if !files.iter().map(|module| module.file_name.as_str()).eq(order.lines()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its modules are not those of its order"));
    }
    Ok(files)
}

struct Archive<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    fn modules(&mut self, modules: &[Module]) -> io::Result<()> {
        let order: String = modules.iter().map(|module| format!("{}\n", module.file_name)).collect();
        self.entry(ORDER, ModeFileType::Regular, 0o644, order.as_bytes())?;
        for module in modules {
            let path = format!("modules/{}", module.file_name);
            self.entry(&path, ModeFileType::Regular, 0o644, &module.bytes)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, kind: ModeFileType, mode: u32, bytes: &[u8]) -> io::Result<()> {
        self.add(path, kind, mode, bytes, (0, 0))
    }

    fn add(
        &mut self,
        path: &str,
        kind: ModeFileType,
        mode: u32,
        bytes: &[u8],
        (major, minor): (u32, u32),
    ) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut writer = newc::Builder::new(path)
            .ino(self.entries)
            .mode(mode)
            .set_mode_file_type(kind)
            .rdev_major(major)
            .rdev_minor(minor)
            .write(&mut self.out, size);
        writer.write_all(bytes)?;
        writer.finish().map(drop)
    }
}

const DIRECTORIES: [&str; 7] = ["dev", "proc", "sys", "base", "drive", "newroot", "modules"];
const ORDER: &str = "modules/order";
/// Device numbers: Linux's `Documentation/admin-guide/devices.txt`.
const DEVICES: [(&str, (u32, u32)); 2] = [("dev/console", (5, 1)), ("dev/null", (1, 3))];

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> io::Result<(Vec<Module>, Vec<u8>)> {
        let init = Init { bytes: b"the agent".to_vec(), sha256: String::new(), own: true };
        let module = |name: &str, bytes: &[u8]| Module { file_name: name.to_owned(), bytes: bytes.to_vec() };
        let modules = vec![module("b.ko", b"12345"), module("a.ko", b"")];
        let mut archive = Vec::new();
        pack(&init, &modules, &mut archive)?;
        Ok((modules, archive))
    }

    #[test]
    fn modules_come_back_in_load_order() -> io::Result<()> {
        let (packed, archive) = sample()?;
        assert_eq!(modules(&archive)?, packed);
        assert!(modules(&archive[..archive.len() / 2]).is_err());
        Ok(())
    }

    #[test]
    fn cpio_lists_what_was_packed() -> io::Result<()> {
        let (_, archive) = sample()?;
        let child = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                writeln!(io::stderr(), "skipped: cpio_lists_what_was_packed: cpio cannot be run: {error}")?;
                return Ok(());
            }
        };
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&archive)?;
        }
        let output = child.wait_with_output()?;
        let list = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{list}");
        assert!(list.contains("crw-------") && list.contains("5,   1"), "{list}");
        assert!(list.contains("-rwxr-xr-x") && list.contains(" init\n"), "{list}");
        assert!(list.contains(" modules/b.ko\n"), "{list}");
        Ok(())
    }

    #[test]
    fn an_agent_that_cannot_start_is_refused() -> io::Result<()> {
        assert!(check(b"#!/bin/sh\n").is_err());
        let dynamic = std::fs::read("/proc/self/exe")?;
        assert!(check(&dynamic).is_err_and(|reason| reason.contains("static")));
        Ok(())
    }
}
