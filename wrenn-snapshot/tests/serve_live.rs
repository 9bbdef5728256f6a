//! The memory of an instant, byte for byte, while the guest writes hard.

use std::{
    os::fd::AsFd,
    sync::{Arc, Mutex},
};

use guest::{Backing, Guest, serving::Serving};
use memmap2::Mmap;
use wrenn_snapshot::{
    BeforeWrite, ByteSource, Features, Granule, PAGE_BYTES, PageRange, PageServer, ServeOptions, Tracking, adopt, arm,
    protect_again,
};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

/// A copy of pages that are protected until they are in it.
struct Image {
    view: Mmap,
    /// `None` for pages that are not wanted, or not copied yet.
    pages: Vec<Option<Vec<u8>>>,
    wanted: Vec<bool>,
}

impl Image {
    /// Copies the pages that are wanted and not there yet. They are still protected, so nobody writes meanwhile.
    fn copy(&mut self, range: PageRange) {
        for page in range.start.0 as usize..range.start.0 as usize + range.count as usize {
            if self.wanted[page] && self.pages[page].is_none() {
                self.pages[page] = Some(self.view[page * PAGE_BYTES..][..PAGE_BYTES].to_vec());
            }
        }
    }
}

#[test]
fn a_copy_of_written_pages_is_that_of_the_instant_while_the_guest_writes_hard() {
    for (backing, granules) in [(Backing::Shared, 512), (Backing::SharedHuge, 8)] {
        let name = "a_copy_of_written_pages_is_that_of_the_instant";
        let Some((mut guest, uffd)) = Guest::start_on(name, backing, granules) else { continue };
        arm(uffd.as_fd(), &[], Features::NONE).expect("the handshake");
        let regions = [guest.region];
        adopt(uffd.as_fd(), &regions, Tracking::Sync).expect("adopted");
        let granule = guest.region.granule;
        let pages = granules * granule.pages();
        let image =
            Image { view: guest.view(), pages: vec![None; pages as usize], wanted: vec![false; pages as usize] };
        let image = Arc::new(Mutex::new(image));
        let for_server = Arc::clone(&image);
        let keep = BeforeWrite::new(move |range| for_server.lock().expect("nobody panics").copy(range));
        let options = ServeOptions { tracking: Tracking::Sync, before_write: Some(keep), ..ServeOptions::default() };
        let source = Box::new(ByteSource::new(vec![3; pages as usize * PAGE_BYTES]).expect("whole pages"));
        let server = PageServer::new(uffd.try_clone().expect("a copy"), regions.to_vec(), source, options);
        let server = server.expect("it fits");
        let written = server.written_pages();
        let serving = Serving::start(server);

        // The guest writes to a part of its memory, and stops. Nothing of that is wanted yet.
        (0..granules).step_by(3).for_each(|at| guest.fill(at, at % 7 + 100));
        let dirty = written.take();
        assert_eq!(dirty.len(), granules.div_ceil(3) as usize);
        let instant = guest.view().to_vec();
        for range in &dirty {
            let range = range.start.0 as usize..range.start.0 as usize + range.count as usize;
            image.lock().expect("nobody panics").wanted[range].fill(true);
        }
        protect_again(uffd.as_fd(), &regions, &dirty).expect("protected");

        // It goes on, and writes to all of it, while the pages are copied from the last to the first.
        guest.begin_to_write_hard(if granule == Granule::Kib4 { 50 } else { 200 });
        for range in dirty.iter().rev() {
            image.lock().expect("nobody panics").copy(*range);
            std::thread::yield_now();
        }
        guest.finish();

        let image = image.lock().expect("nobody panics");
        for range in &dirty {
            for page in range.start.0 as usize..range.start.0 as usize + range.count as usize {
                let copied = image.pages[page].as_deref().expect("every page that was wanted");
                assert!(copied == &instant[page * PAGE_BYTES..][..PAGE_BYTES], "page {page} on {backing:?}");
            }
        }
        assert!(image.view[..] != instant[..], "the guest did write");
        let again: u32 = written.take().iter().map(|range| range.count).sum();
        assert_eq!(again, pages, "each page is told of once more");
        serving.end();
    }
}
