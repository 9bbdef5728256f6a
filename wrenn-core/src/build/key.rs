//! The key of a step: what its result depends on, as one number.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use wrenn_net::NetworkPolicy;

use crate::build::ready::Check;

/// What a step does, as far as its result depends on it. Fields and variants are part of every key: a change of one changes all.
#[derive(Debug, Clone, Serialize)]
pub(super) enum Content<'a> {
    Run {
        words: &'a [String],
        user: Option<&'a str>,
        directory: Option<&'a str>,
        env: &'a BTreeMap<String, String>,
        /// By name, the digest of each value.
        secrets: BTreeMap<&'a str, String>,
        network: &'a NetworkPolicy,
    },
    Copy {
        to: &'a str,
        mode: Option<u32>,
        owner: Option<&'a str>,
        unpacks: bool,
        /// The digest of the files, or the stage that they are from and their paths.
        files: String,
    },
    Directories,
    Start {
        words: &'a [String],
        user: Option<&'a str>,
        directory: Option<&'a str>,
        env: &'a BTreeMap<String, String>,
        ready: Option<&'a Check>,
        network: &'a NetworkPolicy,
    },
}

#[derive(Serialize)]
struct Keyed<'a> {
    version: u32,
    /// What the guest is before the step.
    parent: &'a str,
    /// The directories that are made before it.
    directories: &'a [String],
    content: &'a Content<'a>,
}

/// The key of a step. It is also the name of its record.
pub(super) fn key(parent: &str, directories: &[String], content: &Content<'_>) -> String {
    let keyed = Keyed { version: VERSION, parent, directories, content };
    // What it is made of has texts for keys, and no float: it has always a text.
    hex(&serde_json::to_vec(&keyed).unwrap_or_default())
}

/// A digest as text. It is shorter than a digest's own, and longer than the id of a generation, for which it cannot be taken.
pub(super) fn hex(bytes: &[u8]) -> String {
    text_of(&Sha256::digest(bytes))
}

pub(super) fn text_of(digest: &[u8]) -> String {
    digest.iter().take(KEY_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

/// Another one with each change of what a step does to its guest.
const VERSION: u32 = 2;
const KEY_BYTES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str], env: &[(&str, &str)], secret: &str, parent: &str, directories: &[&str]) -> String {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let env = env.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let (words, network) = (owned(words), NetworkPolicy::default());
        let secrets = [("T", hex(secret.as_bytes()))].into();
        let content =
            Content::Run { words: &words, user: None, directory: None, env: &env, secrets, network: &network };
        key(parent, &owned(directories), &content)
    }

    #[test]
    fn a_key_changes_with_each_thing_that_it_depends_on() {
        let keys = [
            run(&["a"], &[], "s", "p", &[]),
            run(&["a", ""], &[], "s", "p", &[]),
            run(&["a"], &[("A", "1")], "s", "p", &[]),
            run(&["a"], &[], "t", "p", &[]),
            run(&["a"], &[], "s", "q", &[]),
            run(&["a"], &[], "s", "p", &["/d"]),
            key("p", &[], &Content::Directories),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(
            run(&["a"], &[("A", "1"), ("B", "2")], "s", "p", &[]),
            run(&["a"], &[("B", "2"), ("A", "1")], "s", "p", &[])
        );
        assert!(keys.iter().all(|key| key.len() == 40 && key.parse::<wrenn_snapshot::GenerationId>().is_err()));
    }
}
