//! Reads what a file of Rust says, without what only tests compile.

mod cfg;
mod mentions;
mod uses;

use quote::ToTokens;
use syn::{Attribute, Item, ItemMod};

use super::source::{Body, Child, Definition, Namespace, Source};

/// Parses a file.
pub(super) fn parse(text: &str) -> syn::Result<Source> {
    Ok(of(syn::parse_file(text)?.items))
}

fn of(items: Vec<Item>) -> Source {
    let mut source = Source::default();
    for item in items {
        take(&mut source, item);
    }
    source
}

fn take(source: &mut Source, item: Item) {
    match item {
        Item::Use(item) if !is_for_tests(&item.attrs) => source.imports.extend(uses::imports(&item)),
        Item::Mod(item) if !is_for_tests(&item.attrs) => take_mod(source, item),
        Item::Use(_) | Item::Mod(_) => {}
        item => {
            let tokens = item.to_token_stream();
            if !cfg::starts_for_tests(&tokens) {
                source.definitions.extend(definition(&item));
                mentions::scan(tokens, source);
            }
        }
    }
}

fn take_mod(source: &mut Source, item: ItemMod) {
    for attribute in &item.attrs {
        mentions::scan(attribute.to_token_stream(), source);
    }
    let body = match item.content {
        Some((_, items)) => Body::Inline(of(items)),
        None => Body::File { path: item.attrs.iter().find_map(path_attribute) },
    };
    source.children.push(Child { name: item.ident.to_string(), body });
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| cfg::is_for_tests(&attribute.meta))
}

/// The file that `#[path = "..."]` names.
fn path_attribute(attribute: &Attribute) -> Option<String> {
    let value = &attribute.meta.require_name_value().ok()?.value;
    match value {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) if attribute.path().is_ident("path") => {
            Some(path.value())
        }
        _ => None,
    }
}

fn definition(item: &Item) -> Option<Definition> {
    use Namespace::{Macro, Type, Value};
    let (name, namespaces): (_, &[Namespace]) = match item {
        Item::Enum(item) => (&item.ident, &[Type]),
        // A tuple or a unit is a value too.
        Item::Struct(item) => (&item.ident, &[Type, Value]),
        Item::Trait(item) => (&item.ident, &[Type]),
        Item::TraitAlias(item) => (&item.ident, &[Type]),
        Item::Type(item) => (&item.ident, &[Type]),
        Item::Union(item) => (&item.ident, &[Type]),
        Item::Const(item) => (&item.ident, &[Value]),
        Item::Fn(item) => (&item.sig.ident, &[Value]),
        Item::Static(item) => (&item.ident, &[Value]),
        Item::Macro(item) => (item.ident.as_ref()?, &[Macro]),
        _ => return None,
    };
    Some(Definition { name: name.to_string(), namespaces })
}
