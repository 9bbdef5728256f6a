//! Reading pages from a source and putting them in place.

use crate::{
    counters::Origin,
    error::{Error, Result},
    page::{PAGE_BYTES, PageIndex, PageRange, bytes_of},
    region::{Granule, Region, Regions},
    resident::{Installation, Progress, ResidentPages},
    source::{PageRun, PageSource},
};

/// A source, and the memory that it is put into.
pub(crate) struct Filler {
    source: Box<dyn PageSource>,
    pub(crate) resident: ResidentPages,
    /// Room for the source to read into.
    scratch: Vec<u8>,
    /// Where a granule is put together that the source has in pieces. Empty if no region has such granules.
    granule: Vec<u8>,
}

/// Pages to put in place, and why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filling<'a> {
    pub(crate) region: &'a Region,
    /// Whole granules of the region.
    pub(crate) pages: PageRange,
    /// A page that a thread waits to write.
    pub(crate) written: Option<PageIndex>,
    pub(crate) origin: Origin,
}

impl Filler {
    pub(crate) fn new(source: Box<dyn PageSource>, resident: ResidentPages, regions: &Regions) -> Self {
        let granule_pages = regions.iter().map(|region| region.granule.pages()).max().unwrap_or(1);
        let granule = if granule_pages > 1 { vec![0; bytes_of(granule_pages)] } else { Vec::new() };
        Self { source, resident, scratch: vec![0; bytes_of(pages_at_once(regions))], granule }
    }

    /// Reads pages and puts them in place, one run after another.
    pub(crate) fn fill(&mut self, what: &Filling<'_>) -> Result<Progress> {
        let Self { source, resident, scratch, granule } = self;
        let Filling { region, written, origin, .. } = *what;
        let (mut page, end) = (what.pages.start.0, what.pages.start.0 + what.pages.count);
        while page < end {
            let first = PageIndex(page);
            let run = ask(&**source, first, end - page, scratch)?;
            let run = match whole_granules(run, region.granule) {
                Some(run) => run,
                None => {
                    let begun = run.pages();
                    copy_run(run, granule);
                    finish_granule(&**source, first, begun, scratch, granule)?
                }
            };
            let count = run.pages();
            let progress = resident.install(&Installation { region, first, run, written, origin })?;
            if progress != Progress::Done {
                return Ok(progress);
            }
            page += count;
        }
        Ok(Progress::Done)
    }

    /// Lets go of the source: every page is in place, and one that goes missing later is zeros.
    pub(crate) fn let_go(&mut self) {
        self.source = Box::new(Gone);
        self.resident.counters.note_detached();
    }

    /// Puts zeros in the place of a granule that the guest discarded. They count as written: the parent has other
    /// bytes. If the granule is there, whoever waits for it goes on.
    pub(crate) fn fill_discarded(&mut self, region: &Region, granule: PageRange) -> Result<Progress> {
        let run = PageRun::Zero(granule.count);
        let (first, written) = (granule.start, Some(granule.start));
        self.resident.install(&Installation { region, first, run, written, origin: Origin::Fault })
    }
}

/// The source of a memory that is all in place.
struct Gone;

impl PageSource for Gone {
    fn page_count(&self) -> u32 {
        0
    }

    fn run<'a>(&'a self, _: PageIndex, _: u32, _: &'a mut [u8]) -> Result<PageRun<'a>> {
        Err(Error::invalid("every page was put in place, and the source was let go"))
    }
}

/// Asks a source, which may be a stranger's, and refuses what is no answer.
fn ask<'a>(source: &'a dyn PageSource, first: PageIndex, pages_max: u32, scratch: &'a mut [u8]) -> Result<PageRun<'a>> {
    let run = source.run(first, pages_max, scratch)?;
    let is_whole =
        matches!(run, PageRun::Zero(_)) || matches!(run, PageRun::Data(bytes) if bytes.len() % PAGE_BYTES == 0);
    if is_whole && (1..=pages_max).contains(&run.pages()) {
        return Ok(run);
    }
    let answer = match run {
        PageRun::Zero(pages) => format!("{pages} pages of zeros"),
        PageRun::Data(bytes) => format!("{} bytes", bytes.len()),
    };
    Err(Error::BadSource { first, pages_max, answer })
}

/// The whole granules at the start of a run, if there is one.
fn whole_granules(run: PageRun<'_>, granule: Granule) -> Option<PageRun<'_>> {
    let pages = run.pages() - run.pages() % granule.pages();
    (pages > 0).then(|| match run {
        PageRun::Zero(_) => PageRun::Zero(pages),
        PageRun::Data(bytes) => PageRun::Data(&bytes[..bytes_of(pages)]),
    })
}

/// Reads the rest of a granule whose first pages are in `into` already.
fn finish_granule<'a>(
    source: &dyn PageSource,
    first: PageIndex,
    begun: u32,
    scratch: &mut [u8],
    into: &'a mut [u8],
) -> Result<PageRun<'a>> {
    let pages = u32::try_from(into.len() / PAGE_BYTES).unwrap_or(u32::MAX);
    let mut done = begun;
    while done < pages {
        let run = ask(source, PageIndex(first.0 + done), pages - done, scratch)?;
        copy_run(run, &mut into[bytes_of(done)..]);
        done += run.pages();
    }
    Ok(PageRun::Data(into))
}

/// Copies a run to the start of a buffer.
fn copy_run(run: PageRun<'_>, into: &mut [u8]) {
    match run {
        PageRun::Zero(pages) => into[..bytes_of(pages)].fill(0),
        PageRun::Data(bytes) => into[..bytes.len()].copy_from_slice(bytes),
    }
}

/// The most pages that are read and installed at once.
pub(crate) fn pages_at_once(regions: &Regions) -> u32 {
    let granule_pages = regions.iter().map(|region| region.granule.pages()).max().unwrap_or(1);
    granule_pages.max(PAGES_AT_ONCE)
}

/// 1 MiB: the largest window around a fault.
const PAGES_AT_ONCE: u32 = 256;
