//! A thread that touches a page, and may have to wait for it.
#![expect(unsafe_code, reason = "memory that the kernel changes")]

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use memmap2::MmapRaw;

/// What a thread does to the first byte of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    Read,
    Write(u8),
}

/// The thread, which has not come to its end as far as is known.
pub(super) struct Toucher {
    pub(super) page: u32,
    found: mpsc::Receiver<u8>,
    thread: JoinHandle<()>,
}

impl Toucher {
    pub(super) fn start(map: &Arc<MmapRaw>, page: u32, at: usize, touch: Touch) -> Self {
        assert!(at < map.len());
        let (map, (tell, found)) = (Arc::clone(map), mpsc::channel());
        let thread = std::thread::spawn(move || {
            let byte = map.as_mut_ptr().wrapping_add(at);
            if let Touch::Write(value) = touch {
                // SAFETY: the byte is in the mapping, which lives as long as this thread, and no reference is to it.
                unsafe { byte.write_volatile(value) };
            }
            // SAFETY: as above.
            let value = unsafe { byte.read_volatile() };
            tell.send(value).expect("whoever started the thread waits for it");
        });
        Self { page, found, thread }
    }

    /// The byte that it found, if it is at its end, and otherwise itself.
    pub(super) fn end_within(self, time: Duration) -> Result<u8, Self> {
        match self.found.recv_timeout(time) {
            Ok(byte) => {
                self.thread.join().expect("it does not panic");
                Ok(byte)
            }
            Err(mpsc::RecvTimeoutError::Timeout) => Err(self),
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("the thread that touches page {} panicked", self.page),
        }
    }
}
