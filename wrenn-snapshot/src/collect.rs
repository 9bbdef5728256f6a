//! Deciding what no root reaches.
//!
//! ```text
//!  roots ─► read what each reaches ─► close the gate ─► what is in use, and came since ─► keep; the rest goes
//!                    │ cannot be read                                                      ▲
//!                    └─► spare: whatever it might reach ───────────────────────────────────┘
//! ```
//!
//! # Damage
//! What a generation reaches are itself and some of what its parent reaches, so all of it is among its ancestors: those
//! that the manifests name, one after another. Where the tables of one cannot be read, its ancestors are kept. Where an
//! ancestor's manifest is gone or damaged, too, whatever was there before might be meant. Then all is kept but what is
//! known to be younger: what descends from the damaged generation, or from an ancestor of it that is known.

use std::collections::{HashMap, HashSet};

use crate::{
    error::{Error, Result},
    id::GenerationId,
    reach::{Reach, read_manifest},
    root::Root,
    sweep::sweep,
    temp_dir::REMOVED_PREFIX,
};

/// What a collection did that [went around damage](crate::LocalStore::collect_around_damage).
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Collected {
    /// The generations that it removed.
    pub removed: Vec<GenerationId>,
    /// The roots and the generations in use that cannot be read. All that they might reach is kept.
    pub damaged: Vec<DamagedGeneration>,
    /// The generations that are kept for the damaged ones alone, which may be garbage.
    pub spared: Vec<GenerationId>,
}

/// A generation that cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub struct DamagedGeneration {
    /// Its name.
    pub id: GenerationId,
    /// What is wrong with it. [`Error::NotFound`] if it is not there at all.
    pub error: Error,
}

/// What to do about a root that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UponDamage {
    /// Remove nothing, and say so.
    Refuse,
    /// Keep what it might reach.
    Spare,
}

pub(crate) fn collect(root: &Root, roots: &[GenerationId], upon_damage: UponDamage) -> Result<Collected> {
    // Before the gate is closed, so that nobody waits for it: a generation that is there then has not changed.
    let mut known: HashMap<GenerationId, Result<Reach>> =
        roots.iter().map(|id| (*id, Reach::of_whole(root, *id))).collect();
    let mut parents = Parents { root, known: HashMap::new() };
    if upon_damage == UponDamage::Spare && known.values().any(Result::is_err) {
        list(root)?.into_iter().for_each(|id| _ = parents.of(id));
    }
    let gate = root.close_gate()?;
    let listed = list(root)?;
    let (mut kept, mut damaged) = (HashSet::new(), Vec::new());
    let mut keep = |id: GenerationId, reach: Result<Reach>| match reach {
        Ok(reach) => {
            kept.extend(reach.generations());
            Ok(())
        }
        Err(error) if upon_damage == UponDamage::Refuse => Err(error),
        Err(error) => {
            damaged.push(DamagedGeneration { id, error });
            Ok(())
        }
    };
    for id in roots {
        let reach = match (listed.binary_search(id), known.remove(id)) {
            (Err(_), Some(_)) => Err(Error::NotFound(*id)),
            (Ok(_), Some(Ok(reach))) => Ok(reach),
            // It may have been published since.
            (Ok(_), Some(Err(_))) => Reach::of_whole(root, *id),
            // It was given twice.
            (_, None) => continue,
        };
        keep(*id, reach)?;
    }
    for id in &listed {
        if !roots.contains(id) && root.lock_unused(&root.dir(*id))?.is_none() {
            keep(*id, Reach::of(root, *id))?;
        }
    }
    let mut spared = HashSet::new();
    for DamagedGeneration { id, .. } in &damaged {
        // The tables may be whole, and something else is not.
        match Reach::of(root, *id) {
            Ok(reach) => spared.extend(reach.generations()),
            Err(_) => spared.extend(parents.might_reach(*id, &listed)),
        }
    }
    let mut doomed = listed;
    doomed.retain(|id| !kept.contains(id) && !spared.contains(id));
    spared.retain(|id| !kept.contains(id) && damaged.iter().all(|damaged| damaged.id != *id));
    // Out of sight first: what goes half-way is then a directory to sweep, and not a generation that lacks files.
    for id in &doomed {
        root.rename(&root.dir(*id), &root.path.join(format!("{REMOVED_PREFIX}{id}")))?;
    }
    sweep(root, gate)?;
    Ok(Collected { removed: doomed, damaged, spared: spared.into_iter().collect() })
}

/// Every generation in the directory, sorted.
pub(crate) fn list(root: &Root) -> Result<Vec<GenerationId>> {
    let mut ids: Vec<GenerationId> = root.list(&root.path)?.iter().filter_map(|name| name.parse().ok()).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Which generation each was made from, as far as their manifests tell.
struct Parents<'a> {
    root: &'a Root,
    known: HashMap<GenerationId, Parent>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// It was made from none.
    None,
    Known(GenerationId),
    /// It is gone, or its manifest cannot be read.
    Unknown,
}

impl Parents<'_> {
    fn of(&mut self, id: GenerationId) -> Parent {
        let root = self.root;
        *self.known.entry(id).or_insert_with(|| match read_manifest(root, id) {
            Ok(manifest) => manifest.parent.map_or(Parent::None, Parent::Known),
            Err(_) => Parent::Unknown,
        })
    }

    /// What a generation whose tables cannot be read might reach.
    fn might_reach(&mut self, id: GenerationId, listed: &[GenerationId]) -> HashSet<GenerationId> {
        let mut ancestors = HashSet::from([id]);
        let mut last = id;
        loop {
            match self.of(last) {
                Parent::None => return ancestors,
                // Nothing is its own ancestor.
                Parent::Known(parent) if ancestors.insert(parent) => last = parent,
                Parent::Known(_) | Parent::Unknown => break,
            }
        }
        let younger = |id: &GenerationId| !ancestors.contains(id) && self.descends_from(*id, &ancestors);
        let younger: HashSet<GenerationId> = listed.iter().copied().filter(younger).collect();
        listed.iter().copied().filter(|id| !younger.contains(id)).collect()
    }

    fn descends_from(&mut self, id: GenerationId, ancestors: &HashSet<GenerationId>) -> bool {
        let mut seen = HashSet::from([id]);
        let mut last = id;
        while let Parent::Known(parent) = self.of(last) {
            if ancestors.contains(&parent) {
                return true;
            }
            if !seen.insert(parent) {
                return false;
            }
            last = parent;
        }
        false
    }
}
