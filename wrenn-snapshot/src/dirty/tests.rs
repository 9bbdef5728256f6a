//! What the tracker says when protection fails under it. The memory is this process's own.

use std::os::{fd::AsFd, unix::fs::FileExt};

use memmap2::MmapRaw;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;
use crate::{
    arm::arm_file,
    page::{PAGE_BYTES, PageIndex},
    sys::uffd::{self, Features, Uffd},
};

const PAGES: u32 = 64;

/// Memory in which every page is in place, armed and clean.
struct Scene {
    map: MmapRaw,
    region: Region,
    uffd: Uffd,
    tracker: DirtyTracker,
}

impl Scene {
    fn start(test: &str) -> Option<Self> {
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        file.set_len(u64::from(PAGES) * PAGE_BYTES as u64).expect("it has a size");
        let map = MmapRaw::map_raw(&file).expect("a mapping");
        let region = Region::new(map.as_ptr() as u64, map.len() as u64, 0);
        let armed = uffd::create().and_then(|uffd| {
            (0..PAGES).for_each(|page| write_to(&map, page));
            arm_file(uffd.as_fd(), &[region], Features::SERVE_AND_TRACK)?;
            uffd::protect(uffd.as_fd(), region.host_addr, region.len_bytes).map(|()| uffd)
        });
        let uffd = match armed {
            Ok(uffd) => uffd,
            Err(error) => {
                println!("skipped: {test}: {error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
                return None;
            }
        };
        let pagemap = File::open("/proc/self/pagemap").expect("there is one");
        let tracker = DirtyTracker::of_file(pagemap, vec![region], file).expect("a tracker");
        Some(Self { map, region, uffd, tracker })
    }

    fn write(&self, page: u32) {
        write_to(&self.map, page);
    }

    /// Pages from `from` on are no longer anybody's to protect.
    fn forget_from(&self, from: u32) {
        let addr = self.region.addr_of(PageIndex(from));
        uffd::unregister(self.uffd.as_fd(), addr, self.region.host_end() - addr).expect("unregistered");
    }
}

fn write_to(map: &MmapRaw, page: u32) {
    let addr = map.as_ptr() as u64 + u64::from(page) * PAGE_BYTES as u64;
    // Through the kernel, which needs no pointer: this test file has no unsafe code.
    let memory = File::options().write(true).open("/proc/self/mem").expect("this process has memory");
    memory.write_all_at(&[7], addr).expect("written");
}

#[test]
fn a_scan_that_fails_half_way_leaves_what_it_had_protected_again_pending() {
    let Some(mut scene) = Scene::start("a_scan_that_fails_half_way") else { return };
    assert_eq!(scene.tracker.collect().expect("a scan"), []);
    [3, 20].into_iter().for_each(|page| scene.write(page));
    scene.forget_from(PAGES / 2);
    scene.tracker.collect().expect_err("half of it cannot be scanned");
    let pending = scene.tracker.pending();
    assert!([3, 20].iter().all(|page| pending.iter().any(|range| range.contains(PageIndex(*page)))), "{pending:?}");
}

#[test]
fn once_protection_is_lost_every_page_that_is_there_counts_as_written() {
    let Some(mut scene) = Scene::start("once_protection_is_lost") else { return };
    let second = uffd::create().expect("another descriptor");
    scene.tracker.hold_with(scene.uffd.as_fd(), second).expect("it can be held");
    (0..40).for_each(|page| scene.write(page));
    let found = scene.tracker.collect().expect("a scan");
    assert_eq!(found, [PageRange::new(0, 40)]);
    // Somebody else's from now on, so that it cannot be moved.
    let (addr, len) = (scene.region.addr_of(PageIndex(30)), 10 * PAGE_BYTES as u64);
    uffd::unregister(scene.uffd.as_fd(), addr, len).expect("unregistered");
    let thief = uffd::create().expect("a third");
    uffd::handshake(thief.as_fd(), Features::HOLD).expect("armed");
    uffd::register(thief.as_fd(), addr, len, uffd::Watched::Writes).expect("registered");
    scene.tracker.hold(&found).expect_err("a part of it is another's");

    scene.tracker.commit();
    for _ in 0..2 {
        assert_eq!(scene.tracker.collect().expect("no scan is needed"), [PageRange::new(0, PAGES)]);
        assert_eq!(scene.tracker.pending(), [PageRange::new(0, PAGES)]);
        scene.tracker.commit();
    }
    assert!(scene.tracker.hold(&found).expect("it is not tried").is_none());
}
