//! A keeper whose copier is late, stands still, or never comes.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use crate::{
    hold::{
        held::Read,
        keeper::{KEPT_MAX, Keeper},
    },
    page::PageRange,
};

/// More than are kept for a copier.
const PIECES: u32 = 16;

const _: () = assert!(KEPT_MAX < 16);

fn keeper() -> Arc<Keeper<Read>> {
    let pieces = (0..PIECES).map(|page| PageRange::new(page, 1)).collect();
    let read: Read = Box::new(|pages: PageRange| Ok(vec![u8::try_from(pages.start.0).expect("small")]));
    Arc::new(Keeper::new(pieces, read))
}

/// Keeps every page on a thread of its own, and says when that is done.
fn keep_all(keeper: &Arc<Keeper<Read>>) -> mpsc::Receiver<()> {
    let (done, ended) = mpsc::channel();
    let keeper = Arc::clone(keeper);
    std::thread::spawn(move || {
        (0..PIECES).rev().for_each(|page| keeper.keep(PageRange::new(page, 1)));
        done.send(()).expect("the test waits");
    });
    ended
}

fn take_all(keeper: &Keeper<Read>) -> Vec<(u32, Vec<u8>)> {
    let pieces = std::iter::from_fn(|| keeper.take()).map(|piece| piece.expect("read"));
    let mut pieces: Vec<_> = pieces.map(|piece| (piece.pages.start.0, piece.bytes)).collect();
    pieces.sort_unstable();
    pieces
}

fn all() -> Vec<(u32, Vec<u8>)> {
    (0..PIECES).map(|page| (page, vec![u8::try_from(page).expect("small")])).collect()
}

#[test]
fn a_write_does_not_wait_for_a_copier_that_has_not_begun() {
    let keeper = keeper();
    keep_all(&keeper).recv_timeout(Duration::from_secs(10)).expect("nobody is waited for");
    assert_eq!(take_all(&keeper), all());
}

#[test]
fn a_write_waits_for_a_copier_that_stands_still_no_longer_than_a_while() {
    let keeper = keeper();
    let first = keeper.take().expect("there is one").expect("read");
    keep_all(&keeper).recv_timeout(Duration::from_secs(10)).expect("it goes on in the end");
    let mut taken = take_all(&keeper);
    taken.push((first.pages.start.0, first.bytes));
    taken.sort_unstable();
    assert_eq!(taken, all());
}
