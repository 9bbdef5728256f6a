//! Which file imports which: each path of a crate, led to the file that has what it names.

use std::collections::{BTreeMap, BTreeSet};

use super::resolve::{Found, Hop, Place, Want, resolve};
use super::source::{Form, ImportName, Namespace, Reach};
use super::tree::{FileId, ModuleId, Tree};
use super::violation::{At, Violation};

/// The imports between the files of a tree.
#[derive(Debug, Default)]
pub(super) struct Imports {
    /// For each file and each that it imports, the lines.
    edges: BTreeMap<FileId, BTreeMap<FileId, BTreeSet<usize>>>,
    detours: Vec<Violation>,
}

impl Imports {
    pub(super) fn of(tree: &Tree) -> Self {
        let mut reader = Reader { tree, imports: Self::default() };
        for (id, module) in tree.modules() {
            for import in &module.imports {
                let is_glob = import.name == ImportName::Glob;
                reader.take_use(id, &import.path, import.line, is_glob);
            }
            for mention in &module.mentions {
                reader.take_mention(id, &mention.path, mention.line, mention.form);
            }
        }
        reader.imports
    }

    /// What a file imports, with the lines in which it does.
    pub(super) fn from(&self, file: FileId) -> impl Iterator<Item = (FileId, &BTreeSet<usize>)> {
        self.edges.get(&file).into_iter().flatten().map(|(&file, lines)| (file, lines))
    }

    /// The lines in which one file imports another.
    pub(super) fn lines(&self, from: FileId, to: FileId) -> impl Iterator<Item = usize> {
        self.edges.get(&from).and_then(|edges| edges.get(&to)).into_iter().flatten().copied()
    }

    /// The paths that go through a re-export which they should not use.
    pub(super) fn detours(&self) -> &[Violation] {
        &self.detours
    }
}

struct Reader<'a> {
    tree: &'a Tree,
    imports: Imports,
}

impl Reader<'_> {
    /// A `use` imports what has its name in every namespace; to bring in a module imports nothing of it yet.
    fn take_use(&mut self, from: ModuleId, path: &[String], line: usize, is_glob: bool) {
        let found = [Namespace::Type, Namespace::Value, Namespace::Macro]
            .into_iter()
            .filter_map(|namespace| resolve(self.tree, from, path, Want::In(namespace)));
        let mut found: Vec<Found> = found.collect();
        // A module that has the name of a function beside it is what is meant, unless it is out of the way.
        if found.first().is_some_and(|first| matches!(first.place, Place::Module(_)) && first.hops.is_empty()) {
            found.truncate(1);
        }
        if found.is_empty() {
            found.extend(resolve(self.tree, from, path, Want::Anything));
        }
        for found in found {
            self.take(from, path, line, &found, is_glob);
        }
    }

    fn take_mention(&mut self, from: ModuleId, path: &[String], line: usize, form: Form) {
        // What starts with an item's name is this file's own, or a `use` has told of it.
        if resolve(self.tree, from, &path[..1], Want::In(Namespace::Type)).is_some_and(|first| first.place.is_item()) {
            return;
        }
        let order = match form {
            Form::Call => [Namespace::Value, Namespace::Type, Namespace::Macro],
            Form::Plain | Form::ModuleContents => [Namespace::Type, Namespace::Value, Namespace::Macro],
        };
        let found = order.into_iter().find_map(|namespace| resolve(self.tree, from, path, Want::In(namespace)));
        if let Some(found) = found.or_else(|| resolve(self.tree, from, path, Want::Anything)) {
            self.take(from, path, line, &found, form == Form::ModuleContents);
        }
    }

    /// Adds where a path of the module `from` leads. That of a module counts if its contents are taken.
    fn take(&mut self, from: ModuleId, path: &[String], line: usize, found: &Found, contents: bool) {
        let file = self.tree.module(from).file;
        let mut hops: Vec<Hop> = found.hops.clone();
        hops.retain(|hop| self.tree.module(hop.module).file != file);
        let target = match found.place {
            Place::Item(module) => module,
            Place::Module(module) if contents || !hops.is_empty() => module,
            Place::Module(_) => return,
            // What is another crate's is as good as defined where it is re-exported.
            Place::Outside => match hops.pop_if(|hop| hop.reach == Reach::Exported).or_else(|| hops.last().copied()) {
                Some(hop) => hop.module,
                None => return,
            },
        };
        if let Some(hop) = hops.iter().find(|hop| !self.is_door(hop, from, target)) {
            let detour = self.detour(path, At { file, line }, hop, found.place);
            // A name may be a type's and a function's at once.
            if !self.imports.detours.contains(&detour) {
                self.imports.detours.push(detour);
            }
        }
        let to = self.tree.module(target).file;
        let is_module = matches!(found.place, Place::Module(_)) && !contents;
        if to != file && !is_module {
            self.imports.edges.entry(file).or_default().entry(to).or_default().insert(line);
        }
    }

    /// Whether a re-export is the door of the room, or of the part of one, that has the target: it may be used from outside.
    fn is_door(&self, hop: &Hop, from: ModuleId, target: ModuleId) -> bool {
        let [door, from, target] = [hop.module, from, target].map(|id| self.tree.module(id));
        hop.reach == Reach::Exported && hop.module != ModuleId::ROOT && target.is_in(door) && !from.is_in(door)
    }

    fn detour(&self, path: &[String], at: At<FileId>, hop: &Hop, place: Place) -> Violation {
        let has_it = match place {
            Place::Item(module) | Place::Module(module) => {
                let names = ["crate"].into_iter().chain(self.tree.module(module).path.iter().map(String::as_str));
                Some(names.collect::<Vec<_>>().join("::"))
            }
            Place::Outside => None,
        };
        let through = At { file: self.tree.module(hop.module).file, line: hop.line };
        let named = |at: At<FileId>| At { file: self.tree.file(at.file).to_owned(), line: at.line };
        Violation::Detour { at: named(at), path: path.join("::"), through: named(through), has_it }
    }
}
