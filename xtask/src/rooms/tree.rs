//! The modules of a library or a binary, read from its files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::parse::parse;
use super::source::{Body, Child, Definition, Import, ImportName, Mention, Namespace, Source};

/// The modules of one crate, from its root file on.
#[derive(Debug, Default)]
pub(super) struct Tree {
    modules: Vec<Module>,
    files: Vec<String>,
}

/// A module's place in a [`Tree`]; the root is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ModuleId(usize);

impl ModuleId {
    pub(super) const ROOT: Self = Self(0);
}

/// A file's place in a [`Tree`]; that of the root is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId(usize);

impl FileId {
    pub(super) const ROOT: Self = Self(0);
}

#[derive(Debug)]
pub(super) struct Module {
    /// From the root, whose path is empty.
    pub(super) path: Vec<String>,
    pub(super) parent: Option<ModuleId>,
    pub(super) file: FileId,
    pub(super) names: HashMap<String, Vec<Name>>,
    /// Every `use` of the module.
    pub(super) imports: Vec<Import>,
    pub(super) mentions: Vec<Mention>,
}

/// What a name stands for in a module.
#[derive(Debug)]
pub(super) enum Name {
    Item(&'static [Namespace]),
    Module(ModuleId),
    Import(Import),
}

impl Tree {
    /// Reads the modules below the root file. Files are named relative to `workspace`.
    pub(super) fn read(workspace: &Path, root: &Path) -> anyhow::Result<Self> {
        let mut tree = Self::default();
        let directory = root.parent().unwrap_or(root);
        let place = Place { workspace, directory: directory.to_owned(), beside: directory.to_owned() };
        tree.read_file(root, None, Vec::new(), place)?;
        Ok(tree)
    }

    pub(super) fn modules(&self) -> impl Iterator<Item = (ModuleId, &Module)> {
        self.modules.iter().enumerate().map(|(index, module)| (ModuleId(index), module))
    }

    pub(super) fn module(&self, id: ModuleId) -> &Module {
        &self.modules[id.0]
    }

    pub(super) fn files(&self) -> impl Iterator<Item = FileId> + use<> {
        (0..self.files.len()).map(FileId)
    }

    /// The path of a file, relative to the workspace.
    pub(super) fn file(&self, id: FileId) -> &str {
        &self.files[id.0]
    }

    /// The room that a file belongs to; none for the root.
    pub(super) fn room(&self, file: FileId) -> Option<&str> {
        let module = self.modules.iter().find(|module| module.file == file)?;
        module.path.first().map(String::as_str)
    }

    /// The rooms, in the order of the root file.
    pub(super) fn rooms(&self) -> impl Iterator<Item = &str> {
        let tops = self.modules.iter().filter(|module| module.path.len() == 1 && module.file != FileId::ROOT);
        tops.map(|module| module.path[0].as_str())
    }

    fn read_file(
        &mut self,
        file: &Path,
        parent: Option<ModuleId>,
        path: Vec<String>,
        place: Place<'_>,
    ) -> anyhow::Result<ModuleId> {
        let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let source = parse(&text).with_context(|| format!("{} is not Rust", file.display()))?;
        self.files.push(file.strip_prefix(place.workspace).unwrap_or(file).display().to_string());
        let file = FileId(self.files.len() - 1);
        self.add(source, Module::new(path, parent, file), &place)
    }

    fn add(&mut self, source: Source, module: Module, place: &Place<'_>) -> anyhow::Result<ModuleId> {
        let id = ModuleId(self.modules.len());
        self.modules.push(module);
        for child in source.children {
            let name = child.name.clone();
            let child = self.add_child(child, id, place)?;
            self.modules[id.0].names.entry(name).or_default().push(Name::Module(child));
        }
        self.modules[id.0].fill(source.definitions, source.imports, source.mentions);
        Ok(id)
    }

    fn add_child(&mut self, child: Child, parent: ModuleId, place: &Place<'_>) -> anyhow::Result<ModuleId> {
        let mut path = self.module(parent).path.clone();
        path.push(child.name.clone());
        match child.body {
            Body::Inline(source) => {
                let module = Module::new(path, Some(parent), self.module(parent).file);
                self.add(source, module, &place.inside(&child.name))
            }
            Body::File { path: named } => {
                let (file, place) = place.find(&child.name, named.as_deref())?;
                self.read_file(&file, Some(parent), path, place)
            }
        }
    }
}

impl Module {
    fn new(path: Vec<String>, parent: Option<ModuleId>, file: FileId) -> Self {
        Self { path, parent, file, names: HashMap::new(), imports: Vec::new(), mentions: Vec::new() }
    }

    fn fill(&mut self, definitions: Vec<Definition>, imports: Vec<Import>, mentions: Vec<Mention>) {
        for definition in definitions {
            self.names.entry(definition.name).or_default().push(Name::Item(definition.namespaces));
        }
        for import in &imports {
            if let ImportName::Named(name) = &import.name {
                self.names.entry(name.clone()).or_default().push(Name::Import(import.clone()));
            }
        }
        self.imports = imports;
        self.mentions = mentions;
    }

    /// Whether this module is `other`, or inside of it.
    pub(super) fn is_in(&self, other: &Self) -> bool {
        self.path.starts_with(&other.path)
    }
}

/// Where the files of a module's children are looked for.
#[derive(Clone, Debug)]
struct Place<'a> {
    workspace: &'a Path,
    directory: PathBuf,
    /// The directory of the module's own file, which `#[path]` counts from.
    beside: PathBuf,
}

impl Place<'_> {
    /// The place of an inline module's children.
    fn inside(&self, name: &str) -> Self {
        let directory = self.directory.join(name);
        Self { beside: directory.clone(), directory, ..self.clone() }
    }

    /// The file of a child, and the place of that child's own children.
    fn find(&self, name: &str, named: Option<&str>) -> anyhow::Result<(PathBuf, Self)> {
        if let Some(named) = named {
            let file = self.beside.join(named);
            let beside = file.parent().unwrap_or(&self.beside).to_owned();
            return Ok((file, Self { directory: beside.clone(), beside, ..self.clone() }));
        }
        let directory = self.directory.join(name);
        let flat = (self.directory.join(format!("{name}.rs")), self.directory.clone());
        let nested = (directory.join("mod.rs"), directory.clone());
        for (file, beside) in [flat, nested] {
            if file.is_file() {
                return Ok((file, Self { directory, beside, ..self.clone() }));
            }
        }
        bail!("module `{name}` has no file in {}", self.directory.display())
    }
}
