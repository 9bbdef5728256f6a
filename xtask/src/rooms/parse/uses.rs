//! The names that a `use` brings in.

use syn::{ItemUse, UseTree, Visibility, spanned::Spanned};

use crate::rooms::source::{Import, ImportName, Reach, Segments};

/// Everything that a `use` imports.
pub(super) fn imports(item: &ItemUse) -> Vec<Import> {
    let reach = match item.vis {
        Visibility::Inherited => Reach::Private,
        _ => Reach::Exported,
    };
    let prefix = if item.leading_colon.is_some() { vec![String::new()] } else { Vec::new() };
    let mut imports = Vec::new();
    flatten(&item.tree, &prefix, &mut |name, path, line| imports.push(Import { name, path, line, reach }));
    imports
}

/// Calls `each` with every name that a `use` brings in: what it is called here, its path, and its line.
fn flatten(tree: &UseTree, prefix: &[String], each: &mut impl FnMut(ImportName, Segments, usize)) {
    let with = |ident: &syn::Ident| {
        let mut path = prefix.to_vec();
        // `a::{self}` is `a`.
        if ident != "self" || prefix.is_empty() {
            path.push(ident.to_string());
        }
        path
    };
    let line = tree.span().start().line;
    match tree {
        UseTree::Path(tree) => flatten(&tree.tree, &with(&tree.ident), each),
        UseTree::Group(tree) => tree.items.iter().for_each(|tree| flatten(tree, prefix, each)),
        UseTree::Glob(_) => each(ImportName::Glob, prefix.to_vec(), line),
        UseTree::Name(tree) => {
            let path = with(&tree.ident);
            each(path.last().cloned().map_or(ImportName::Underscore, ImportName::Named), path, line);
        }
        UseTree::Rename(tree) if tree.rename == "_" => each(ImportName::Underscore, with(&tree.ident), line),
        UseTree::Rename(tree) => each(ImportName::Named(tree.rename.to_string()), with(&tree.ident), line),
    }
}
