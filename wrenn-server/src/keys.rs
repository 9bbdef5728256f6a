//! `wrenn-server keys`: the keys that clients send.
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::path::Path;

use clap::Subcommand;
use wrenn_core::Host;
use wrenn_server::serve::open_store;
use wrenn_server::service::clock::now_ms;
use wrenn_server::service::keys;
use wrenn_server::service::sandboxes::stored::stored_bytes;
use wrenn_server::store::contract::Store;
use wrenn_server::store::records::{Terms, Usage};

#[derive(Subcommand)]
pub(crate) enum Keys {
    /// Make a key and print it. It is not kept, and not to be had again.
    Create {
        /// Whose it is, for people.
        name: String,
        #[command(flatten)]
        terms: TermsArguments,
    },
    /// List the keys by their ids, the newest first, each with what it has running and stored, and may have.
    List,
    /// Revoke a key, from its next request on. Its sandboxes stay.
    Revoke {
        /// The key's id: its first eight digits, as `list` prints them.
        id: String,
    },
}

#[derive(clap::Args)]
pub(crate) struct TermsArguments {
    /// After how many days the key ends. Default: never.
    #[arg(long, value_name = "DAYS")]
    days: Option<u32>,
    /// The key may look at everything of its own, and change nothing.
    #[arg(long)]
    read_only: bool,
    /// The key may read `/metrics` from other machines, which tells of all keys.
    #[arg(long)]
    operator: bool,
    /// How many sandboxes of the key may run at once.
    #[arg(long, value_name = "NUMBER")]
    max_sandboxes: Option<u32>,
    /// How many virtual processors its running sandboxes may have together.
    #[arg(long, value_name = "NUMBER")]
    max_vcpus: Option<u32>,
    /// How much memory its running sandboxes may have together, in MiB.
    #[arg(long, value_name = "MIB")]
    max_memory_mib: Option<u64>,
    /// How much disk may be kept for it, in MiB: for its paused sandboxes, checkpoints, snapshots and builds.
    #[arg(long, value_name = "MIB")]
    max_stored_mib: Option<u64>,
    /// How many requests it may send in a second.
    #[arg(long, value_name = "NUMBER")]
    max_requests_per_second: Option<u32>,
}

/// Does what was asked for.
pub(crate) async fn run(command: Keys, data_dir: &Path, database_url: Option<&str>) -> anyhow::Result<()> {
    let store = open_store(data_dir, database_url).await?;
    match command {
        Keys::Create { name, terms } => println!("{}", keys::create(&*store, &name, terms.into(), now_ms()).await?.0),
        Keys::List => list(data_dir, &*store).await?,
        Keys::Revoke { id } => {
            let is_revoked = store.revoke_key(&id, now_ms()).await?;
            anyhow::ensure!(is_revoked, "there is no key {id} that is good: `wrenn-server keys list` has them all");
        }
    }
    Ok(())
}

/// Prints each key, with what it has and may have.
async fn list(data_dir: &Path, store: &dyn Store) -> anyhow::Result<()> {
    // A machine that is not set up has keys as well.
    let host = Host::builder().data_dir(data_dir).open().await;
    for key in store.keys().await? {
        let state = if key.revoked_at_ms.is_some() { "revoked" } else { "good" };
        let stored_bytes = match &host {
            Ok(host) => Some(stored_bytes(host, store, &key.id, None).await?),
            Err(_) => None,
        };
        let use_and_limits = use_and_limits(&key.terms, store.usage(&key.id).await?, stored_bytes);
        println!("{}  {state:<7}  {}{use_and_limits}", key.id, key.name);
    }
    if let Err(error) = host {
        println!("What the keys store is not counted here: {error}");
    }
    Ok(())
}

/// What a key has, of how much, in brackets; what it has nothing of, and may have as much of as it likes, is left out.
fn use_and_limits(terms: &Terms, usage: Usage, stored_bytes: Option<u64>) -> String {
    let all = [
        (Some(usage.sandboxes), terms.sandboxes_max.map(u64::from), "sandboxes running"),
        (Some(usage.vcpus), terms.vcpus_max.map(u64::from), "vCPUs"),
        (Some(usage.memory_mib), terms.memory_mib_max, "MiB of memory"),
        (stored_bytes.map(|bytes| bytes >> 20), terms.stored_mib_max, "MiB stored"),
        (None, terms.requests_per_sec_max.map(u64::from), "requests a second"),
    ];
    let all = all.into_iter().filter_map(|(used, max, what)| match (used, max) {
        (Some(used), Some(max)) => Some(format!("{used} of {max} {what}")),
        (None, Some(max)) => Some(format!("at most {max} {what}")),
        (None | Some(0), None) => None,
        (Some(used), None) => Some(format!("{used} {what}")),
    });
    let all = all.collect::<Vec<_>>().join(", ");
    if all.is_empty() { all } else { format!("  ({all})") }
}

impl From<TermsArguments> for Terms {
    fn from(of: TermsArguments) -> Self {
        Self {
            expires_at_ms: of.days.map(|days| now_ms().saturating_add(i64::from(days) * DAY_MS)),
            reads_only: of.read_only,
            operates: of.operator,
            sandboxes_max: of.max_sandboxes,
            vcpus_max: of.max_vcpus,
            memory_mib_max: of.max_memory_mib,
            stored_mib_max: of.max_stored_mib,
            requests_per_sec_max: of.max_requests_per_second,
        }
    }
}

const DAY_MS: i64 = 24 * 3600 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_listed_with_what_it_has_of_what_it_may_have() {
        let usage = Usage { sandboxes: 2, vcpus: 4, memory_mib: 1024 };
        let terms = Terms { sandboxes_max: Some(5), stored_mib_max: Some(40), ..Terms::default() };
        let text = use_and_limits(&terms, usage, Some(12 << 20));
        assert_eq!(text, "  (2 of 5 sandboxes running, 4 vCPUs, 1024 MiB of memory, 12 of 40 MiB stored)");
        let terms = Terms { requests_per_sec_max: Some(9), ..terms };
        let text = use_and_limits(&terms, Usage::default(), None);
        assert_eq!(text, "  (0 of 5 sandboxes running, at most 40 MiB stored, at most 9 requests a second)");
        assert_eq!(use_and_limits(&Terms::default(), Usage::default(), Some(0)), "");
    }
}
