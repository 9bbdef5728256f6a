//! Random sequences of calls, to wrenn's memory and to the crate's.

use std::ops::Range;

use proptest::prelude::*;

use super::{
    calls,
    outcome::Outcome,
    side::{Backing, PAGES, Side, Touched},
    touch::Touch,
};
use crate::{
    page::PAGE_BYTES,
    seed::cases,
    sys::uffd::{Features, Install, MISSING_SHMEM, Watched},
};

/// Something that is done to both.
#[derive(Clone, Debug)]
enum Step {
    Register(Range<u32>, Watched),
    Unregister(Range<u32>),
    Copy(Range<u32>, u8, Install),
    Zero(u32),
    Wake(Range<u32>),
    Protect(Range<u32>),
    Unprotect(Range<u32>),
    Discard(Range<u32>),
    Touch(u32, Touch),
    /// Addresses that are no pages: the range, moved by so many bytes.
    Askew(Range<u32>, u64),
}

/// All that can be seen of a step.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    outcomes: Vec<Outcome>,
    touched: Vec<(u32, Touched)>,
    pagemap: Vec<[bool; 3]>,
}

fn step() -> impl Strategy<Value = Step> {
    let pages =
        || (0..PAGES).prop_flat_map(|start| (Just(start), start + 1..=PAGES)).prop_map(|(start, end)| start..end);
    let watched = prop::sample::select(vec![Watched::Missing, Watched::Writes, Watched::MissingAndWrites]);
    let install = prop::sample::select(vec![Install::Clean, Install::Dirty]);
    let touch = prop_oneof![Just(Touch::Read), (1u8..).prop_map(Touch::Write)];
    prop_oneof![
        1 => (pages(), watched).prop_map(|(pages, watched)| Step::Register(pages, watched)),
        1 => pages().prop_map(Step::Unregister),
        4 => (pages(), 1u8.., install).prop_map(|(pages, byte, install)| Step::Copy(pages, byte, install)),
        1 => (0..PAGES).prop_map(Step::Zero),
        1 => pages().prop_map(Step::Wake),
        2 => pages().prop_map(Step::Protect),
        3 => pages().prop_map(Step::Unprotect),
        1 => pages().prop_map(Step::Discard),
        6 => (0..PAGES, touch).prop_map(|(page, touch)| Step::Touch(page, touch)),
        1 => (pages(), 1u64..4096).prop_map(|(pages, by)| Step::Askew(pages, by)),
    ]
}

/// Does a step to one of them. `protects` are the pages whose writes it watches.
fn take(side: &mut Side, step: &Step, protects: &[bool]) -> Seen {
    let (calls, at) = (&side.calls, |pages: &Range<u32>| side.addresses(pages));
    let mut woken = 0..0;
    let outcomes = match step {
        Step::Register(pages, watched) => vec![calls.register(&at(pages), *watched)],
        Step::Unregister(pages) => {
            woken = pages.clone();
            // Not every kernel wakes those that wait to write.
            vec![calls.unregister(&at(pages)), calls.wake(&at(pages))]
        }
        Step::Copy(pages, byte, install) => {
            // The kernel copies nothing protected to where writes are not watched, and the crate has no such copy.
            let install = if protects[pages.start as usize..pages.end as usize].contains(&false) {
                Install::Dirty
            } else {
                *install
            };
            let outcome = calls.copy(at(pages).start, &vec![*byte; pages.len() * PAGE_BYTES], install);
            if let Outcome::Bytes(bytes) = outcome {
                woken = pages.start..pages.start + u32::try_from(bytes / PAGE_BYTES as u64).expect("few");
            }
            vec![outcome]
        }
        Step::Zero(page) => {
            // Where a missing page is marked as protected the kernel copies, but puts no page of zeros: it says that one exists.
            if let [false, true, true] = side.pagemap()[*page as usize] {
                vec![]
            } else {
                let outcome = calls.zero(at(&(*page..*page + 1)).start);
                woken = if matches!(outcome, Outcome::Bytes(_)) { *page..*page + 1 } else { 0..0 };
                vec![outcome]
            }
        }
        Step::Wake(pages) => {
            woken = pages.clone();
            vec![calls.wake(&at(pages))]
        }
        Step::Protect(pages) => vec![calls.protect(&at(pages))],
        Step::Unprotect(pages) => {
            let outcome = calls.unprotect(&at(pages));
            woken = if matches!(outcome, Outcome::Bytes(_)) { pages.clone() } else { 0..0 };
            vec![outcome]
        }
        Step::Discard(pages) => {
            side.discard(pages);
            vec![]
        }
        Step::Touch(page, touch) => {
            let touched = side.touch(*page, *touch);
            return Seen { outcomes: Vec::new(), touched, pagemap: side.pagemap() };
        }
        Step::Askew(pages, by) => {
            let range = at(pages).start + by..at(pages).end + by;
            let bytes = vec![1; pages.len() * PAGE_BYTES];
            vec![
                calls.register(&range, Watched::Missing),
                calls.unregister(&range),
                calls.copy(range.start, &bytes, Install::Dirty),
                calls.copy(at(pages).start, &bytes[1..], Install::Dirty),
                calls.copy(at(pages).start, &[], Install::Dirty),
                calls.wake(&range),
                calls.protect(&range),
                calls.unprotect(&range),
            ]
        }
    };
    let touched = side.settle(&woken);
    Seen { outcomes, touched, pagemap: side.pagemap() }
}

/// Which pages' writes are watched after a step that both have taken.
fn note(watched: &mut [Option<Watched>], step: &Step) {
    match step {
        Step::Register(pages, new) => {
            for old in &mut watched[pages.start as usize..pages.end as usize] {
                // The kernel leaves what is registered for as much or more as it is.
                if *old != Some(Watched::MissingAndWrites) {
                    *old = Some(*new);
                }
            }
        }
        Step::Unregister(pages) => watched[pages.start as usize..pages.end as usize].fill(None),
        _ => {}
    }
}

fn agree(test: &str, features: Features, backing: Backing, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let Some(both) = calls::both(test, features) else { return Ok(()) };
    let mut sides = both.map(|calls| Side::new(calls, backing));
    let mut watched = [None; PAGES as usize];
    for step in std::iter::once(Step::Register(0..PAGES, Watched::MissingAndWrites)).chain(steps) {
        let protects = watched.map(|watched| matches!(watched, Some(Watched::Writes | Watched::MissingAndWrites)));
        let [ours, theirs] = sides.each_mut().map(|side| take(side, &step, &protects));
        prop_assert_eq!(ours, theirs, "{:?}", step);
        note(&mut watched, &step);
    }
    let [ours, theirs] = sides.map(Side::end);
    prop_assert!(ours == theirs, "the memories differ");
    Ok(())
}

fn backing() -> impl Strategy<Value = Backing> {
    prop::sample::select(vec![Backing::Private, Backing::Shared])
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn what_wrenn_calls_does_what_the_crates_calls_do(
        backing in backing(), steps in prop::collection::vec(step(), 1..40),
    ) {
        let features = Features::HOLD.with(Features(MISSING_SHMEM));
        agree("what_wrenn_calls_does_what_the_crates_calls_do", features, backing, steps)?;
    }

    #[test]
    fn the_same_where_the_kernel_marks_writes(backing in backing(), steps in prop::collection::vec(step(), 1..40)) {
        agree("the_same_where_the_kernel_marks_writes", Features::SERVE_AND_TRACK, backing, steps)?;
    }
}
