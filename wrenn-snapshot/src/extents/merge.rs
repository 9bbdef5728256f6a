//! One index laid over another.

use std::collections::HashMap;

use super::{ExtentIndex, Packed};
use crate::id::GenerationId;

impl ExtentIndex {
    /// Lays `diff` over `parent`, in one sweep. The result has the diff's page count, so a space may grow or shrink,
    /// and names only the generations that still hold a page.
    #[must_use]
    pub fn merge(parent: &Self, diff: &Self) -> Self {
        let mut merged = Merge::new(parent.extents.len() + diff.extents.len());
        let mut from_parent = Origin::new(parent);
        let mut from_diff = Origin::new(diff);
        let mut sweep = parent.extents.as_slice();
        let mut cursor = 0;
        for extent in &diff.extents {
            sweep = merged.push_between(sweep, cursor, extent.start, &mut from_parent);
            merged.push(*extent, &mut from_diff);
            cursor = extent.end();
        }
        merged.push_between(sweep, cursor, diff.page_count, &mut from_parent);
        merged.extents.shrink_to_fit();
        Self::packed(diff.page_count, merged.generations, merged.extents)
    }
}

/// One of the two indexes of a merge: where its generations went in the result.
struct Origin<'a> {
    generations: &'a [GenerationId],
    renumbered: Vec<Option<u32>>,
}

impl<'a> Origin<'a> {
    fn new(index: &'a ExtentIndex) -> Self {
        Self { generations: &index.generations, renumbered: vec![None; index.generations.len()] }
    }
}

struct Merge {
    generations: Vec<GenerationId>,
    extents: Vec<Packed>,
    numbers: HashMap<GenerationId, u32>,
}

impl Merge {
    fn new(extents: usize) -> Self {
        Self { generations: Vec::new(), extents: Vec::with_capacity(extents), numbers: HashMap::new() }
    }

    /// Copies the parts of `sweep` inside `from..to`, and returns the extents that reach past `to`.
    fn push_between<'s>(
        &mut self,
        mut sweep: &'s [Packed],
        from: u32,
        to: u32,
        origin: &mut Origin<'_>,
    ) -> &'s [Packed] {
        while let Some((extent, rest)) = sweep.split_first() {
            if extent.start >= to {
                break;
            }
            if extent.end() > from && to > from {
                self.push(extent.clip(from, to), origin);
            }
            if extent.end() > to {
                break;
            }
            sweep = rest;
        }
        sweep
    }

    fn push(&mut self, mut extent: Packed, origin: &mut Origin<'_>) {
        if extent.generation != Packed::ZERO {
            extent.generation = self.renumber(extent.generation, origin);
        }
        match self.extents.last_mut() {
            Some(last) if last.is_continued_by(&extent) => last.count += extent.count,
            _ => self.extents.push(extent),
        }
    }

    fn renumber(&mut self, generation: u32, origin: &mut Origin<'_>) -> u32 {
        let slot = &mut origin.renumbered[generation as usize];
        *slot.get_or_insert_with(|| {
            let id = origin.generations[generation as usize];
            *self.numbers.entry(id).or_insert_with(|| {
                self.generations.push(id);
                u32::try_from(self.generations.len() - 1).unwrap_or(u32::MAX)
            })
        })
    }
}
