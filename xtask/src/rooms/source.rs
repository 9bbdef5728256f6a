//! What one file of Rust says: the names that it defines, the modules that it declares, the paths that it writes.

/// The contents of a module, without what only tests compile.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub(super) definitions: Vec<Definition>,
    pub(super) children: Vec<Child>,
    pub(super) imports: Vec<Import>,
    pub(super) mentions: Vec<Mention>,
}

/// A path: its segments as they are written. That of a path which starts with `::` is empty in the first place.
pub(super) type Segments = Vec<String>;

/// The namespaces that Rust keeps apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Namespace {
    Type,
    Value,
    Macro,
}

/// An item that has a name.
#[derive(Debug)]
pub(super) struct Definition {
    pub(super) name: String,
    pub(super) namespaces: &'static [Namespace],
}

/// A module inside of this one.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) name: String,
    pub(super) body: Body,
}

/// Where a module's contents are.
#[derive(Debug)]
pub(super) enum Body {
    Inline(Source),
    /// In a file of its own, perhaps one that is named.
    File {
        path: Option<String>,
    },
}

/// One name that a `use` brings in.
#[derive(Clone, Debug)]
pub(super) struct Import {
    pub(super) name: ImportName,
    pub(super) path: Segments,
    pub(super) line: usize,
    pub(super) reach: Reach,
}

/// What a `use` calls what it brings in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ImportName {
    Named(String),
    Underscore,
    /// `*`: every name of a module.
    Glob,
}

/// Who may name what a `use` brings in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// The module itself, and those inside of it.
    Private,
    /// Others too: a re-export.
    Exported,
}

/// A path that is written outside of a `use`.
#[derive(Debug)]
pub(super) struct Mention {
    pub(super) path: Segments,
    pub(super) line: usize,
    pub(super) form: Form,
}

/// What can be told from where a path stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    /// It is called, so it is a value.
    Call,
    /// An attribute takes what is in the module (`serde(with = "...")`).
    ModuleContents,
}
