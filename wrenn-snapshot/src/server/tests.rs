//! A server whose guest changes its mappings. The memory is this process's own.

use std::fs::File;

use memmap2::MmapRaw;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;
use crate::{
    arm::arm,
    byte_source::ByteSource,
    page::PAGE_BYTES,
    sys::uffd::{self},
};

const PAGES: u32 = 64;

#[test]
fn a_guest_that_unmaps_a_part_of_its_memory_is_not_gone() {
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.set_len(u64::from(PAGES) * PAGE_BYTES as u64).expect("it has a size");
    let map = MmapRaw::map_raw(&file).expect("a mapping");
    let region = Region::new(map.as_ptr() as u64, map.len() as u64, 0);
    let armed = uffd::create().and_then(|uffd| arm(uffd.as_fd(), &[region], Features::SERVE_AND_TRACK).map(|()| uffd));
    let uffd = match armed {
        Ok(uffd) => uffd,
        Err(error) => {
            println!("skipped: a_guest_that_unmaps_a_part_of_its_memory_is_not_gone: {error}");
            return;
        }
    };
    // To the kernel the same as if nothing were mapped there.
    uffd::unregister(uffd.as_fd(), region.addr_of(PageIndex(10)), 10 * PAGE_BYTES as u64).expect("unregistered");
    let source = ByteSource::new(vec![7; PAGES as usize * PAGE_BYTES]).expect("whole pages");
    let populate = Populate::InBackground { bytes_per_second: 1 << 30 };
    let options = ServeOptions { populate, ..ServeOptions::default() };
    let server = PageServer::new(uffd, vec![region], Box::new(source), options).expect("it fits");
    let (counters, stop) = (server.counters(), StopHandle::new().expect("a handle"));
    let handle = stop.clone();
    let thread = std::thread::spawn(move || server.serve(&handle));
    let started = Instant::now();
    while counters.report().pages < u64::from(PAGES) - 10 && !thread.is_finished() {
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", counters.report());
        std::thread::yield_now();
    }
    stop.stop();
    let end = thread.join().expect("the server does not panic");
    assert!(matches!(end.reason, EndReason::Stopped), "{end:?}");
    assert_eq!(counters.report().pages, u64::from(PAGES) - 10);
}
