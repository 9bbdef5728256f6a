//! What a pause costs: packing the dirty pages of a guest's memory, beside copying the same bytes into a file.
//!
//! `diff_dense` and `diff_sparse` are without any waiting for a disk: the store is in memory, and so is the file.
//! `…/synced` are on a disk, made durable: the store syncs the data, then the header that names them; the file is
//! synced once. The copy is one write for each run of dirty pages.

use std::{fs::File, io::Write, time::Duration};

use nix::sys::memfd::{MFdFlags, memfd_create};
use wrenn_snapshot::{LocalStore, PAGE_BYTES, PageRange, Space};

mod support;
use support::{Goal, in_turns, report_percentiles, time};

fn main() {
    let memory = memory();
    let dense = [PageRange::new(0, DENSE_PAGES)];
    let sparse: Vec<_> = (0..DENSE_PAGES).map(|page| PageRange::new(page * (PAGES / DENSE_PAGES), 1)).collect();
    let directory = tempfile::tempdir().expect("a directory");
    for (name, dirty) in [("diff_dense", &dense[..]), ("diff_sparse", &sparse)] {
        let store = LocalStore::in_memory().expect("a store");
        let file = || File::from(memfd_create(c"bench", MFdFlags::empty()).expect("a file"));
        let [values, references] =
            in_turns(ROUNDS, 1, || pack(&store, &memory, dirty), || copy(&file(), &memory, dirty, Sync::No));
        report_percentiles(name, "ns", &values, &references, [Goal::AtMost(1.3), Goal::None]);

        let store = LocalStore::open(directory.path().join(name)).expect("a store");
        let file = || tempfile::tempfile_in(directory.path()).expect("a file");
        let [values, references] =
            in_turns(ROUNDS, 1, || pack(&store, &memory, dirty), || copy(&file(), &memory, dirty, Sync::Yes));
        let name = format!("{name}/synced");
        report_percentiles(&name, "ns", &values, &references, [Goal::AtMost(1.3), Goal::None]);
    }
}

/// Bytes that are in no page zeros. Every page of it has been touched.
fn memory() -> Vec<u8> {
    let mut state = 1u64;
    let mut memory = vec![0; PAGES as usize * PAGE_BYTES];
    for word in memory.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        word.copy_from_slice(&state.to_le_bytes());
    }
    memory
}

fn pack(store: &LocalStore, memory: &[u8], dirty: &[PageRange]) -> Duration {
    let mut pending = store.begin(None).expect("begun");
    time(|| pending.write_dirty(Space::Memory, memory, dirty).expect("written"))
}

#[derive(Clone, Copy, PartialEq)]
enum Sync {
    No,
    Yes,
}

fn copy(mut file: &File, memory: &[u8], dirty: &[PageRange], sync: Sync) -> Duration {
    time(|| {
        for range in dirty {
            let start = range.start.0 as usize * PAGE_BYTES;
            file.write_all(&memory[start..start + range.count as usize * PAGE_BYTES]).expect("written");
        }
        if sync == Sync::Yes {
            file.sync_all().expect("synced");
        }
    })
}

/// 256 MiB, of which 32 are dirty.
const PAGES: u32 = 1 << 16;
const DENSE_PAGES: u32 = PAGES / 8;
const ROUNDS: usize = 30;
