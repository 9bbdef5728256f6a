//! The calls to the allocator.
#![expect(unsafe_code, reason = "no crate has mallopt and malloc_trim")]

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

/// Has glibc divide what it has among so many arenas at most: each keeps pages that are half in use. Other C libraries have
/// no such number.
pub(super) fn limit_arenas(arenas_max: c_int) {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and the allocator's own lock.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, arenas_max);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = arenas_max;
}

/// Has glibc give back every page that is free, in all arenas. Other C libraries have nothing of the kind.
pub(super) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and the allocator's own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
