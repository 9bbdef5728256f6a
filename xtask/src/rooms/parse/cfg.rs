//! Whether an attribute leaves a piece of code to the tests.

use proc_macro2::{TokenStream, TokenTree};
use syn::{Meta, Token, parse::Parser, punctuated::Punctuated};

/// Whether an attribute is a `cfg` that holds in tests alone.
pub(super) fn is_for_tests(attribute: &Meta) -> bool {
    attribute.path().is_ident("cfg") && parts(attribute).iter().any(needs_test)
}

/// Whether a piece of code starts with such an attribute.
pub(super) fn starts_for_tests(code: &TokenStream) -> bool {
    let mut tokens = code.clone().into_iter().peekable();
    while matches!(&tokens.peek(), Some(TokenTree::Punct(mark)) if mark.as_char() == '#') {
        tokens.next();
        match tokens.next() {
            Some(TokenTree::Group(attribute)) if is_written_for_tests(attribute.stream()) => return true,
            Some(_) => {}
            None => return false,
        }
    }
    false
}

/// The same of what stands between an attribute's brackets.
pub(super) fn is_written_for_tests(attribute: TokenStream) -> bool {
    syn::parse2::<Meta>(attribute).is_ok_and(|attribute| is_for_tests(&attribute))
}

fn needs_test(condition: &Meta) -> bool {
    let path = condition.path();
    if path.is_ident("all") {
        parts(condition).iter().any(needs_test)
    } else if path.is_ident("any") {
        let parts = parts(condition);
        !parts.is_empty() && parts.iter().all(needs_test)
    } else {
        path.is_ident("test")
    }
}

/// What stands between the parentheses of `all(...)`, `any(...)` or `cfg(...)`.
fn parts(condition: &Meta) -> Vec<Meta> {
    let Meta::List(list) = condition else { return Vec::new() };
    let parts = Punctuated::<Meta, Token![,]>::parse_terminated.parse2(list.tokens.clone());
    parts.map(|parts| parts.into_iter().collect()).unwrap_or_default()
}
