//! The paths in a piece of code: in expressions, types, patterns, attributes, and what macros are given.
//!
//! Tokens are read and not syntax, so that all of these are one case. A name that stands alone says nothing of another
//! file: the `use` that brought it here does.

use std::str::FromStr;

use proc_macro2::{Delimiter, Group, Ident, Literal, Spacing, TokenStream, TokenTree};

use super::{cfg, uses};
use crate::rooms::source::{Form, Mention, Segments, Source};

/// Adds what `code` mentions to `source`, and what the `use`s in its functions import.
pub(super) fn scan(code: TokenStream, source: &mut Source) {
    let tokens: Vec<TokenTree> = code.into_iter().collect();
    let mut rest = tokens.as_slice();
    while let Some((first, after)) = rest.split_first() {
        rest = match first {
            TokenTree::Ident(word) if word == "use" => scan_use(rest, source),
            TokenTree::Ident(word) if word == "serde" => {
                scan_serde(after, source);
                after
            }
            TokenTree::Ident(word) => scan_path(word, after, source),
            TokenTree::Punct(mark) if mark.as_char() == '#' => scan_attribute(after, source),
            // What follows a `::` that no name stands before is an item of another crate, or of a type.
            TokenTree::Punct(_) if separates(rest) => skip_path(&rest[2..]),
            TokenTree::Group(group) => {
                scan(group.stream(), source);
                after
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => after,
        };
    }
}

/// A `use` in a function.
fn scan_use<'a>(tokens: &'a [TokenTree], source: &mut Source) -> &'a [TokenTree] {
    let end = tokens.iter().position(|token| is_mark(token, ';')).map_or(tokens.len(), |at| at + 1);
    let (item, rest) = tokens.split_at(end);
    match syn::parse2(item.iter().cloned().collect()) {
        Ok(item) => {
            source.imports.extend(uses::imports(&item));
            rest
        }
        // The word is another one, as in `impl Trait + use<'a>`.
        Err(_) => &tokens[1..],
    }
}

/// A path that starts with `first`.
fn scan_path<'a>(first: &Ident, mut rest: &'a [TokenTree], source: &mut Source) -> &'a [TokenTree] {
    let mut path = vec![first.to_string()];
    while separates(rest) {
        let Some(TokenTree::Ident(segment)) = rest.get(2) else { break };
        path.push(segment.to_string());
        rest = &rest[3..];
    }
    if path.len() > 1 {
        let called =
            matches!(rest.first(), Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis);
        let form = if called { Form::Call } else { Form::Plain };
        source.mentions.push(Mention { path, line: first.span().start().line, form });
    }
    rest
}

/// What follows the `#` of an attribute. What an attribute leaves to the tests is passed over.
fn scan_attribute<'a>(tokens: &'a [TokenTree], source: &mut Source) -> &'a [TokenTree] {
    let Some((TokenTree::Group(attribute), rest)) = tokens.split_first() else { return tokens };
    if cfg::is_written_for_tests(attribute.stream()) {
        // It ends where the next field, variant, arm, statement or method begins.
        let end = rest.iter().position(|token| is_mark(token, ',') || is_mark(token, ';') || is_body(token));
        return &rest[end.map_or(rest.len(), |at| at + 1)..];
    }
    scan(attribute.stream(), source);
    rest
}

/// `serde(KEY = "PATH", ...)`.
fn scan_serde(after: &[TokenTree], source: &mut Source) {
    let Some(TokenTree::Group(arguments)) = after.first() else { return };
    let tokens: Vec<TokenTree> = arguments.stream().into_iter().collect();
    for window in tokens.windows(3) {
        let [TokenTree::Ident(key), equals, TokenTree::Literal(value)] = window else { continue };
        if is_mark(equals, '=') && SERDE_KEYS.iter().any(|known| key == known) {
            scan_serde_value(key, value, source);
        }
    }
}

/// The keys whose value is a path, or a type.
const SERDE_KEYS: [&str; 9] = [
    "with",
    "serialize_with",
    "deserialize_with",
    "default",
    "skip_serializing_if",
    "getter",
    "from",
    "try_from",
    "into",
];

fn scan_serde_value(key: &Ident, value: &Literal, source: &mut Source) {
    let Ok(syn::Lit::Str(value)) = syn::parse_str(&value.to_string()) else { return };
    let line = key.span().start().line;
    if key == "with" {
        let path: Segments = value.value().split("::").map(|segment| segment.trim().to_owned()).collect();
        source.mentions.push(Mention { path, line, form: Form::ModuleContents });
        return;
    }
    let Ok(code) = TokenStream::from_str(&value.value()) else { return };
    let before = source.mentions.len();
    scan(code, source);
    // Their own lines count from the literal's start.
    source.mentions[before..].iter_mut().for_each(|mention| mention.line = line);
}

fn skip_path(mut rest: &[TokenTree]) -> &[TokenTree] {
    while let Some((TokenTree::Ident(_), after)) = rest.split_first() {
        if !separates(after) {
            return after;
        }
        rest = &after[2..];
    }
    rest
}

/// Whether `::` comes first.
fn separates(tokens: &[TokenTree]) -> bool {
    let joint = matches!(tokens.first(), Some(TokenTree::Punct(mark)) if mark.spacing() == Spacing::Joint);
    joint && matches!(tokens, [one, other, ..] if is_mark(one, ':') && is_mark(other, ':'))
}

fn is_mark(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn is_body(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if is_braced(group))
}

fn is_braced(group: &Group) -> bool {
    group.delimiter() == Delimiter::Brace
}
