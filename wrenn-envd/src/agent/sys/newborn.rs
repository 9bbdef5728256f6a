use std::sync::atomic::{AtomicI32, Ordering};

/// The number of a process that is being started. The kernel writes it before the process can end.
#[derive(Debug, Default)]
pub(in crate::agent) struct Newborn {
    pid: AtomicI32,
}

impl Newborn {
    /// `None` for one that is not there yet.
    pub(in crate::agent) fn pid(&self) -> Option<u32> {
        u32::try_from(self.pid.load(Ordering::Acquire)).ok().filter(|pid| *pid != 0)
    }

    /// Where the kernel writes it.
    pub(super) fn place(&self) -> *mut i32 {
        self.pid.as_ptr()
    }
}
