//! A page server whose source breaks its contract ends with an error, and keeps the descriptor: whoever waits for a page
//! goes on waiting, and never sees zeros.

use std::os::fd::AsFd;

use guest::{Guest, serving::Serving};
use wrenn_snapshot::{
    EndReason, Error, Features, PAGE_BYTES, PageIndex, PageRun, PageServer, PageSource, Populate, Result, ServeOptions,
};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

const PAGES: u32 = 64;

/// What is wrong with a source.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    NoZeros,
    NoBytes,
    TooManyZeros,
    TooManyBytes,
    AllTheZerosThereAre,
    HalfAPage,
    Panics,
    Fails,
}

struct Strange {
    wrong: Wrong,
    bytes: Vec<u8>,
}

impl PageSource for Strange {
    fn page_count(&self) -> u32 {
        PAGES
    }

    fn run<'a>(&'a self, _: PageIndex, pages_max: u32, _: &'a mut [u8]) -> Result<PageRun<'a>> {
        let bytes = |pages: u32| PageRun::Data(&self.bytes[..pages as usize * PAGE_BYTES]);
        Ok(match self.wrong {
            Wrong::NoZeros => PageRun::Zero(0),
            Wrong::NoBytes => bytes(0),
            Wrong::TooManyZeros => PageRun::Zero(pages_max + 1),
            Wrong::TooManyBytes => bytes(pages_max + 1),
            Wrong::AllTheZerosThereAre => PageRun::Zero(u32::MAX),
            Wrong::HalfAPage => PageRun::Data(&self.bytes[..PAGE_BYTES / 2]),
            Wrong::Panics => panic!("the source has a bug"),
            Wrong::Fails => return Err(Error::of_source("the store is away")),
        })
    }
}

#[test]
fn a_source_that_breaks_its_contract_ends_the_server_which_keeps_the_descriptor() {
    for wrong in [
        Wrong::NoZeros,
        Wrong::NoBytes,
        Wrong::TooManyZeros,
        Wrong::TooManyBytes,
        Wrong::AllTheZerosThereAre,
        Wrong::HalfAPage,
        Wrong::Panics,
        Wrong::Fails,
    ] {
        let name = "a_source_that_breaks_its_contract_ends_the_server";
        let Some((mut guest, uffd, _)) = Guest::armed(name, PAGES, Features::SERVE_AND_TRACK) else { return };
        let source = Strange { wrong, bytes: vec![1; 2 * PAGES as usize * PAGE_BYTES] };
        let options = ServeOptions { watch: Some(guest.pidfd()), ..ServeOptions::default() };
        let server = PageServer::new(uffd, vec![guest.region], Box::new(source), options).expect("it fits");
        let serving = Serving::start(server);
        guest.begin_read(PAGES - 1);
        let end = serving.join();
        let EndReason::Failed(error) = &end.reason else { panic!("{wrong:?}: {end:?}") };
        match wrong {
            Wrong::Panics => {
                assert!(matches!(error, Error::Panicked(why) if why == "the source has a bug"), "{error:?}")
            }
            Wrong::Fails => assert!(matches!(error, Error::Source(why) if why.to_string() == "the store is away")),
            _ => assert!(matches!(error, Error::BadSource { .. }), "{wrong:?}: {error:?}"),
        }
        assert!(!error.is_retryable() || matches!(wrong, Wrong::Fails));
        assert!(Features::of(end.uffd.as_fd()).expect("it is open").is_some());
        guest.kill();
    }
}

#[test]
fn a_source_that_breaks_its_contract_in_the_background_leaves_the_faults_to_say_so() {
    for wrong in [Wrong::NoZeros, Wrong::TooManyBytes, Wrong::HalfAPage] {
        let name = "a_source_that_breaks_its_contract_in_the_background";
        let Some((guest, uffd, _)) = Guest::armed(name, PAGES, Features::SERVE_AND_TRACK) else { return };
        let source = Strange { wrong, bytes: vec![1; 2 * PAGES as usize * PAGE_BYTES] };
        let populate = Populate::InBackground { bytes_per_second: 1 << 30 };
        let options = ServeOptions { watch: Some(guest.pidfd()), populate, ..ServeOptions::default() };
        let server = PageServer::new(uffd, vec![guest.region], Box::new(source), options).expect("it fits");
        let serving = Serving::start(server);
        serving.wait_for(|report| report.background_failures == 2);
        assert_eq!(serving.end().pages, 0);
    }
}
