//! `wrenn-server keys`: the keys that clients send.
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::path::Path;

use clap::Subcommand;
use wrenn_server::serve::open_store;
use wrenn_server::service::clock::now_ms;
use wrenn_server::service::keys;
use wrenn_server::store::records::Terms;

#[derive(Subcommand)]
pub(crate) enum Keys {
    /// Make a key and print it. It is not kept, and not to be had again.
    Create {
        /// Whose it is, for people.
        name: String,
        #[command(flatten)]
        terms: TermsArguments,
    },
    /// List the keys by their ids, the newest first.
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
        Keys::List => {
            for key in store.keys().await? {
                let state = if key.revoked_at_ms.is_some() { "revoked" } else { "good" };
                println!("{}  {state:<7}  {}{}", key.id, key.name, limits(&key.terms));
            }
        }
        Keys::Revoke { id } => {
            let is_revoked = store.revoke_key(&id, now_ms()).await?;
            anyhow::ensure!(is_revoked, "there is no key {id} that is good: `wrenn-server keys list` has them all");
        }
    }
    Ok(())
}

/// What a key may have at most, in brackets; nothing where nothing is limited.
fn limits(terms: &Terms) -> String {
    let limits = [
        (terms.sandboxes_max.map(u64::from), "sandboxes"),
        (terms.vcpus_max.map(u64::from), "vCPUs"),
        (terms.memory_mib_max, "MiB of memory"),
        (terms.stored_mib_max, "MiB stored"),
        (terms.requests_per_sec_max.map(u64::from), "requests a second"),
    ];
    let limits = limits.into_iter().filter_map(|(max, what)| Some(format!("{} {what}", max?)));
    let limits = limits.collect::<Vec<_>>().join(", ");
    if limits.is_empty() { limits } else { format!("  (at most {limits})") }
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
