//! Finds the module that has the item which a path names, as the compiler does, and what the path went through.

use super::source::{Import, ImportName, Namespace, Reach};
use super::tree::{ModuleId, Name, Tree};

/// Where a path leads.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) place: Place,
    /// The imports that were followed, in order.
    pub(super) hops: Vec<Hop>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// To an item (or a part of one) that this module has.
    Item(ModuleId),
    /// To this module itself.
    Module(ModuleId),
    /// Out of the crate.
    Outside,
}

impl Place {
    pub(super) fn is_item(self) -> bool {
        matches!(self, Self::Item(_))
    }
}

/// An import of another module that a path went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) module: ModuleId,
    pub(super) line: usize,
    pub(super) reach: Reach,
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// A name of this namespace.
    In(Namespace),
    /// Anything. What a module is not seen to define it is taken to define: a macro may have made it.
    Anything,
}

/// Follows `path` from the module that writes it. None if there is no such name in the namespace that is wanted.
pub(super) fn resolve(tree: &Tree, from: ModuleId, path: &[String], want: Want) -> Option<Found> {
    Walk { tree, left: IMPORTS_MAX }.path(from, path, want)
}

/// As many imports lead from name to name at most; more are imports that lead to themselves.
const IMPORTS_MAX: u32 = 64;

struct Walk<'a> {
    tree: &'a Tree,
    left: u32,
}

impl Walk<'_> {
    fn path(&mut self, from: ModuleId, path: &[String], want: Want) -> Option<Found> {
        let mut rest = path;
        let mut at = Found { place: Place::Module(from), hops: Vec::new() };
        let mut relative = false;
        while let Some((first, after)) = rest.split_first() {
            let Place::Module(here) = at.place else { break };
            at.place = match first.as_str() {
                "crate" => Place::Module(ModuleId::ROOT),
                "self" => Place::Module(here),
                "super" => Place::Module(self.tree.module(here).parent?),
                _ => break,
            };
            rest = after;
            relative = true;
        }
        if !relative {
            let (first, after) = path.split_first()?;
            let want = if after.is_empty() { want } else { Want::In(Namespace::Type) };
            // No name of this module is that of another crate, or of a type parameter.
            let Some(found) = self.name(from, first, want) else {
                return Some(Found { place: Place::Outside, hops: Vec::new() });
            };
            at = found;
            rest = after;
        }
        self.descend(at, rest, want)
    }

    fn descend(&mut self, mut at: Found, path: &[String], want: Want) -> Option<Found> {
        for (index, segment) in path.iter().enumerate() {
            // The rest names a variant or an associated item, or is another crate's business.
            let Place::Module(here) = at.place else { return Some(at) };
            let want = if index + 1 == path.len() { want } else { Want::In(Namespace::Type) };
            let Some(found) = self.name(here, segment, want) else {
                let unseen = Found { place: Place::Item(here), hops: at.hops };
                return (want == Want::Anything).then_some(unseen);
            };
            at.place = found.place;
            at.hops.extend(found.hops);
        }
        Some(at)
    }

    /// A name in a module: what it has itself comes before what it imports by name, and that before what a `*` brings.
    fn name(&mut self, module: ModuleId, name: &str, want: Want) -> Option<Found> {
        let names = self.tree.module(module).names.get(name).map_or(&[][..], Vec::as_slice);
        let own = names.iter().find_map(|name| match name {
            Name::Module(child) if want.takes(&[Namespace::Type]) => Some(Place::Module(*child)),
            Name::Item(namespaces) if want.takes(namespaces) => Some(Place::Item(module)),
            _ => None,
        });
        if let Some(place) = own {
            return Some(Found { place, hops: Vec::new() });
        }
        let imports = names.iter().filter_map(|name| if let Name::Import(import) = name { Some(import) } else { None });
        let imported = imports.into_iter().find_map(|import| self.import(module, import, want));
        imported.or_else(|| self.globs(module, name, want))
    }

    fn globs(&mut self, module: ModuleId, name: &str, want: Want) -> Option<Found> {
        // What is unseen could come from any of them.
        let Want::In(_) = want else { return None };
        let tree = self.tree;
        let globs = tree.module(module).imports.iter().filter(|import| import.name == ImportName::Glob);
        globs.into_iter().find_map(|import| {
            let mut found = self.import(module, import, Want::In(Namespace::Type))?;
            let Place::Module(source) = found.place else { return None };
            let inside = self.name(source, name, want)?;
            found.place = inside.place;
            found.hops.extend(inside.hops);
            Some(found)
        })
    }

    fn import(&mut self, module: ModuleId, import: &Import, want: Want) -> Option<Found> {
        self.left = self.left.checked_sub(1)?;
        let mut found = self.path(module, &import.path, want)?;
        found.hops.insert(0, Hop { module, line: import.line, reach: import.reach });
        Some(found)
    }
}

impl Want {
    fn takes(self, namespaces: &[Namespace]) -> bool {
        match self {
            Self::In(namespace) => namespaces.contains(&namespace),
            Self::Anything => true,
        }
    }
}
