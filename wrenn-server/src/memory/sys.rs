//! The one call to the allocator.
#![expect(unsafe_code, reason = "no crate has mallopt")]

use std::ffi::c_int;

/// Has glibc map each buffer of so many bytes apart, and give back what is free at the end of an arena beyond as many, for
/// good. Other C libraries have no such thresholds.
pub(super) fn fix_thresholds(bytes: c_int) {
    #[cfg(target_env = "gnu")]
    for threshold in [nix::libc::M_MMAP_THRESHOLD, nix::libc::M_TRIM_THRESHOLD] {
        // SAFETY: it takes two numbers, and the allocator's own lock.
        unsafe { nix::libc::mallopt(threshold, bytes) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}
