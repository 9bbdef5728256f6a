//! Whether KVM serves Firecracker: a kernel of three instructions that has to end it.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::patience::patient;
use crate::program::status_within;

/// Runs a guest that resets its machine, which ends Firecracker with success. `/dev/kvm` being there says little: under
/// some hypervisors it opens, and a guest then makes no progress.
pub(super) async fn finishes_a_guest(program: &Path) -> io::Result<bool> {
    let dir = tempfile::tempdir()?;
    let kernel = dir.path().join("kernel");
    std::fs::File::create_new(&kernel)?.write_all(&kernel_that_resets())?;
    let config = dir.path().join("config.json");
    let described = json!({
        "boot-source": { "kernel_image_path": kernel, "boot_args": "" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 16 },
        "drives": [],
    });
    std::fs::write(&config, described.to_string())?;
    let arguments =
        ["--no-api".as_ref(), "--config-file".as_ref(), config.as_os_str(), "--id".as_ref(), "probe".as_ref()];
    Ok(status_within(program, arguments, patient(PROBE_TIMEOUT)).await?.is_some_and(|status| status.success()))
}

/// An ELF file with one segment and no sections.
fn kernel_that_resets() -> Vec<u8> {
    let mut kernel = Vec::new();
    kernel.extend(b"\x7fELF\x02\x01\x01"); // 64 bits, little-endian
    kernel.resize(16, 0);
    kernel.extend(2_u16.to_le_bytes()); // an executable
    kernel.extend(62_u16.to_le_bytes()); // for x86-64
    kernel.extend(1_u32.to_le_bytes());
    kernel.extend(LOAD_ADDRESS.to_le_bytes()); // the entry
    kernel.extend(64_u64.to_le_bytes()); // the program headers, after this one
    kernel.extend(0_u64.to_le_bytes());
    kernel.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        kernel.extend(half.to_le_bytes());
    }
    kernel.extend(1_u32.to_le_bytes()); // to be loaded
    kernel.extend(5_u32.to_le_bytes()); // read, execute
    let (offset, len) = (120_u64, CODE.len() as u64);
    for word in [offset, LOAD_ADDRESS, LOAD_ADDRESS, len, len, 1] {
        kernel.extend(word.to_le_bytes());
    }
    kernel.extend(CODE);
    kernel
}

/// `mov al, 0xfe; out 0x64, al; hlt`: the keyboard controller's reset.
const CODE: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4];
/// 1 MiB: above the legacy area.
const LOAD_ADDRESS: u64 = 0x10_0000;
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use object::{Object, ObjectSegment};

    use super::*;

    #[test]
    fn the_probes_kernel_is_an_elf_file_with_its_code_where_it_starts() {
        let bytes = kernel_that_resets();
        let file = object::File::parse(&*bytes).unwrap();
        assert_eq!(file.entry(), LOAD_ADDRESS);
        let segment = file.segments().next().unwrap();
        assert_eq!((segment.address(), segment.data().unwrap()), (LOAD_ADDRESS, CODE));
    }
}
