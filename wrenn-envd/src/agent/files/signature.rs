use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use sha2::{Digest as _, Sha256};

use super::query::Query;

/// What a signature allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
}

/// The signature of a call on `/files` by who holds `token`: E2B's first version.
pub(super) fn sign(query: &Query, operation: Operation, token: &str) -> String {
    let operation = match operation {
        Operation::Read => "read",
        Operation::Write => "write",
    };
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let mut text = format!("{}:{operation}:{}:{token}", part(&query.path), part(&query.username));
    if let Some(expiration) = query.expiration {
        text += &format!(":{expiration}");
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From E2B's Python client, version 2.63.0.
    #[test]
    fn signatures_are_those_of_e2bs_clients() {
        let query = Query { path: Some("/home/user/a b".into()), ..Query::default() };
        assert_eq!(sign(&query, Operation::Read, "token"), "v1_89i1CdL10IxsNEUmvQmokwWMZvXEcyPUSmtaHQ34VYI");
        let query = Query { username: Some("root".into()), expiration: Some(2_000_000_000), ..query };
        assert_eq!(sign(&query, Operation::Write, "token"), "v1_OryAjpLmsq8Hfst/RRS/ms6HLXK5UL40xBDbanC0r4g");
    }
}
