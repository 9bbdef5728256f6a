//! Whether there is memory for a sandbox.

use std::path::Path;

use crate::error::{Error, Result};
use crate::free_memory::free;

/// Whether the smallest sandbox has room. `root` is the root of the file system that `/proc` and `/sys` are in.
///
/// # Errors
/// [`Error::Host`] with what is free, and whose limit it is.
pub(super) fn suffices(root: &Path) -> Result<String> {
    let Some(free) = free(root) else { return Ok("its limits cannot be read".to_owned()) };
    let text = format!("{} MiB are free {}", free.bytes >> 20, free.of);
    if free.bytes >= SMALLEST_BYTES {
        return Ok(text);
    }
    Err(Error::Host {
        problem: format!("only {text}"),
        remedy: format!("free or grant at least {} MiB: the smallest sandbox takes as much", SMALLEST_BYTES >> 20),
        source: None,
    })
}

/// A guest of 128 MiB, the least that can be asked for, and QEMU with some room for what its start takes.
const SMALLEST_BYTES: u64 = 192 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::free_memory::tests::{MEMINFO, machine};

    #[test]
    fn too_little_memory_is_told_with_whose_limit_it_is() {
        let little = machine(&[("proc/meminfo", "MemAvailable: 102400 kB\n")]);
        let text = suffices(little.path()).unwrap_err().to_string();
        assert_eq!(
            text,
            "only 100 MiB are free on this machine: free or grant at least 192 MiB: the smallest sandbox takes as much"
        );
        assert!(suffices(machine(&[MEMINFO]).path()).is_ok());
        assert!(suffices(machine(&[]).path()).is_ok(), "what cannot be read refuses nothing");
    }
}
