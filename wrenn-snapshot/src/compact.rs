//! Folding what is left of mostly overwritten generations into a new one.
//!
//! A generation keeps every ancestor that holds a page of it, with all that the ancestor stores. Where that is mostly
//! pages that nobody needs any more, copying the live ones frees the rest: the copy is a generation with the same
//! content, and once it is kept in the place of the original, a collection removes what was folded. The original and
//! its readers go on meanwhile; nothing of them changes.

use std::collections::HashSet;

use crate::{
    diff,
    error::{Error, Result},
    extents::Storage,
    files::Root,
    format::Space,
    generation::Generation,
    id::GenerationId,
    page::PAGE_BYTES_U64,
    pending::PendingGeneration,
};

/// Which generations a [compaction](crate::LocalStore::compact) folds. Each costs the copying of its live pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactPolicy {
    /// A generation is folded if fewer than this many in a hundred of the pages that it stores are live, that is, are
    /// pages of the generation that is compacted. Default: 50, so that each byte copied frees another. 0 folds none
    /// for this reason.
    pub live_percent_min: u8,
    /// If more generations than this hold pages, those with the fewest live ones are folded too. Default: 64. Each
    /// that holds pages costs a reader a file descriptor, and a resume the opening of its header.
    pub generations_max: usize,
}

impl Default for CompactPolicy {
    fn default() -> Self {
        Self { live_percent_min: 50, generations_max: 64 }
    }
}

/// What a [compaction](crate::LocalStore::compact) did.
#[derive(Clone, Debug)]
pub struct Compaction {
    /// The generation to keep: a new one, or the one that was given if nothing had to be folded.
    pub generation: Generation,
    /// The generations that it needs no more.
    pub folded: Vec<GenerationId>,
    /// The bytes of pages that were copied.
    pub copied_bytes: u64,
    /// The bytes of pages that the folded generations store. A collection frees them if nothing else needs them.
    pub released_bytes: u64,
}

/// What a generation holds for the one that is compacted.
struct Holding {
    id: GenerationId,
    live_pages: u64,
    stored_pages: u64,
}

pub(crate) fn compact(
    root: &Root,
    generation: &Generation,
    policy: CompactPolicy,
    begin: impl FnOnce() -> Result<PendingGeneration>,
) -> Result<Compaction> {
    let folded = choose(holdings(root, generation)?, policy);
    let released_bytes = folded.iter().map(|holding| holding.stored_pages * PAGE_BYTES_U64).sum();
    let folded: HashSet<_> = folded.into_iter().map(|holding| holding.id).collect();
    if folded.is_empty() {
        let (generation, folded) = (generation.clone(), Vec::new());
        return Ok(Compaction { generation, folded, copied_bytes: 0, released_bytes });
    }
    let mut pending = begin()?;
    let mut copied_bytes = 0;
    for space in generation.spaces() {
        let reader = generation.reader(space)?;
        let written = pending.write_space(space, |packer, _| diff::of_folded(packer, &reader, &folded))?;
        copied_bytes += written.data_pages * PAGE_BYTES_U64;
    }
    for name in generation.blobs() {
        pending.write_blob(name, &generation.blob(name)?)?;
    }
    let generation = pending.publish(generation.metadata())?;
    Ok(Compaction { generation, folded: folded.into_iter().collect(), copied_bytes, released_bytes })
}

/// The holdings to fold.
fn choose(mut holdings: Vec<Holding>, policy: CompactPolicy) -> Vec<Holding> {
    holdings.sort_unstable_by_key(|holding| holding.live_pages);
    let sparse =
        |holding: &Holding| holding.live_pages * 100 < holding.stored_pages * u64::from(policy.live_percent_min);
    let (mut folded, mut kept): (Vec<_>, Vec<_>) = holdings.into_iter().partition(sparse);
    // What is folded becomes one more.
    let over =
        |kept: &[Holding], folded: &[Holding]| kept.len() + usize::from(!folded.is_empty()) > policy.generations_max;
    if over(&kept, &folded) {
        let surplus = (kept.len() + 1).saturating_sub(policy.generations_max).min(kept.len());
        folded.extend(kept.drain(..surplus));
    }
    folded
}

fn holdings(root: &Root, generation: &Generation) -> Result<Vec<Holding>> {
    let mut holdings: Vec<Holding> = Vec::new();
    for index in generation.spaces().filter_map(|space| generation.index(space)) {
        let mut live_pages = vec![0; index.generations().len()];
        for extent in index.extents() {
            if let Storage::Data { generation, .. } = extent.storage {
                live_pages[generation as usize] += u64::from(extent.count);
            }
        }
        for (id, live_pages) in index.generations().iter().zip(live_pages) {
            match holdings.iter_mut().find(|holding| holding.id == *id) {
                Some(holding) => holding.live_pages += live_pages,
                None => holdings.push(Holding { id: *id, live_pages, stored_pages: stored_pages(root, *id)? }),
            }
        }
    }
    Ok(holdings)
}

/// The pages in all data files of a generation.
fn stored_pages(root: &Root, id: GenerationId) -> Result<u64> {
    let mut bytes = 0;
    for space in Space::ALL {
        let path = root.dir(id).join(space.data_file());
        match root.len(&path) {
            Ok(len) => bytes += len,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io("inspect", &path, source)),
        }
    }
    Ok(bytes / PAGE_BYTES_U64)
}
