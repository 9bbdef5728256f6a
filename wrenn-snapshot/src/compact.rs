//! Folding what is left of mostly overwritten generations into a new one.
//!
//! A generation keeps every ancestor that holds a page of it, with all that the ancestor stores. Where that is mostly
//! pages that nobody needs any more, copying the live ones frees the rest: the copy is a generation with the same
//! content, and once it is kept in the place of the original, a collection removes what was folded. The original and
//! its readers go on meanwhile; nothing of them changes.
//!
//! # When it is due
//! Each generation makes its lineage one longer, so somebody has to see to it that it is compacted now and then
//! ([`LocalStore::compact_if_due`](crate::LocalStore::compact_if_due)). A lineage that has become too long is folded to
//! half of what is allowed, so that it is due again only as many generations later, and folds those with the fewest
//! live pages: a page is copied a few times in a lineage's life, not at each pause.

use std::collections::HashSet;

use crate::{
    data::headers,
    diff,
    error::{Error, Result},
    extents::Storage,
    generation::Generation,
    id::GenerationId,
    page::PAGE_BYTES_U64,
    pending::PendingGeneration,
    root::Root,
    space::Space,
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
#[non_exhaustive]
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

/// 64 MiB: less is not worth a generation.
const DEAD_PAGES_MIN: u64 = 16 << 10;

/// What a generation holds for the one that is compacted.
struct Holding {
    id: GenerationId,
    live_pages: u64,
    stored_pages: u64,
    stored_bytes: u64,
}

pub(crate) fn compact(
    root: &Root,
    generation: &Generation,
    policy: CompactPolicy,
    begin: impl FnOnce() -> Result<PendingGeneration>,
) -> Result<Compaction> {
    fold(choose(holdings(root, generation)?, policy, &HashSet::new()), generation, begin)
}

/// Compacts a generation whose lineage has become long or wasteful. `spared` finds out what others keep in any case.
pub(crate) fn compact_if_due(
    root: &Root,
    generation: &Generation,
    spared: impl FnOnce() -> HashSet<GenerationId>,
    begin: impl FnOnce() -> Result<PendingGeneration>,
) -> Result<Option<Compaction>> {
    let holdings = holdings(root, generation)?;
    if due(&holdings, &HashSet::new()).is_none() {
        return Ok(None);
    }
    let spared = spared();
    let Some(policy) = due(&holdings, &spared) else { return Ok(None) };
    fold(choose(holdings, policy, &spared), generation, begin).map(Some)
}

/// Whether it is due if nobody else keeps anything: what others keep makes less of it worth while.
pub(crate) fn may_be_due(root: &Root, generation: &Generation) -> Result<bool> {
    Ok(due(&holdings(root, generation)?, &HashSet::new()).is_some())
}

/// How to compact, if it is time to.
fn due(holdings: &[Holding], spared: &HashSet<GenerationId>) -> Option<CompactPolicy> {
    let policy = CompactPolicy::default();
    if holdings.len() > policy.generations_max {
        return Some(CompactPolicy { generations_max: policy.generations_max / 2, ..policy });
    }
    let own = || holdings.iter().filter(|holding| !spared.contains(&holding.id));
    let live: u64 = own().map(|holding| holding.live_pages).sum();
    let dead = own().map(|holding| holding.stored_pages).sum::<u64>().saturating_sub(live);
    (dead >= DEAD_PAGES_MIN && dead > live).then_some(policy)
}

fn fold(
    folded: Vec<Holding>,
    generation: &Generation,
    begin: impl FnOnce() -> Result<PendingGeneration>,
) -> Result<Compaction> {
    let released_bytes = folded.iter().map(|holding| holding.stored_bytes).sum();
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
fn choose(mut holdings: Vec<Holding>, policy: CompactPolicy, spared: &HashSet<GenerationId>) -> Vec<Holding> {
    holdings.sort_unstable_by_key(|holding| holding.live_pages);
    let sparse = |holding: &Holding| {
        let live_percent_min = u64::from(policy.live_percent_min);
        !spared.contains(&holding.id) && holding.live_pages * 100 < holding.stored_pages * live_percent_min
    };
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
                None => {
                    let (stored_pages, stored_bytes) = stored(root, *id)?;
                    holdings.push(Holding { id: *id, live_pages, stored_pages, stored_bytes });
                }
            }
        }
    }
    Ok(holdings)
}

/// The pages in all data files of a generation, and their bytes there.
fn stored(root: &Root, id: GenerationId) -> Result<(u64, u64)> {
    let (mut pages, mut bytes) = (0, 0);
    for space in Space::ALL {
        let path = root.dir(id).join(space.data_file());
        match root.len(&path) {
            Ok(len) => bytes += len,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::io("inspect", &path, source)),
        }
        pages += u64::from(headers::read_fixed_part(root, id, space)?.1.data_pages());
    }
    Ok((pages, bytes))
}
