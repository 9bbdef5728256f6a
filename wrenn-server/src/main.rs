//! `wrenn-server`: wrenn for operators.
#![expect(clippy::print_stdout, reason = "a command-line program")]

mod config;
mod firecracker;
mod images;
mod keys;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use wrenn_core::Host;
use wrenn_core::image::{Image, requirements};
use wrenn_server::memory;
use wrenn_server::ops::log::{Format, Log};
use wrenn_server::serve::{Options, Server, open_store};
use wrenn_server::service::admission::Capacity;
use wrenn_server::service::builds::registries::{self, Registries};
use wrenn_server::service::sandboxes::tend::Chores;
use wrenn_server::service::webhooks::target::Reach;
use wrenn_server::setup::Setup;
use wrenn_server::tls::certificate::Tls;

#[derive(Parser)]
#[command(version, about, arg_required_else_help = true)]
struct Arguments {
    /// The file that has settings by the names of flags, in TOML. Default: /etc/wrenn/server.toml, if it is there.
    #[arg(long, global = true, env = "WRENN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything is kept. Default: /var/lib/wrenn, and for a user who is not root `wrenn` among the data of that user.
    #[arg(long, global = true, env = "WRENN_DATA_DIR", value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// The PostgreSQL database that has the records. Default: a file in the data directory.
    #[arg(long, global = true, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve sandboxes over HTTP. Sets the machine up first where that was not done. At SIGTERM or SIGINT all that runs is
    /// paused, and the next start wakes it.
    Serve {
        /// The address and port to listen on.
        #[arg(long, env = "WRENN_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
        listen: SocketAddr,
        /// Answer without keys: for programs of this machine alone, on a loopback address.
        #[arg(long)]
        no_auth: bool,
        /// The domain below which each port of each sandbox has a name, PORT-ID.DOMAIN. All such names have to lead here.
        #[arg(long, env = "WRENN_DOMAIN", value_name = "DOMAIN")]
        domain: Option<String>,
        /// The certificate to speak TLS with, in PEM, and what it is signed by. It is read again when it changes.
        #[arg(long, env = "WRENN_TLS_CERT", value_name = "FILE")]
        tls_cert: Option<PathBuf>,
        /// The certificate's key, in PEM.
        #[arg(long, env = "WRENN_TLS_KEY", value_name = "FILE")]
        tls_key: Option<PathBuf>,
        /// Speak TLS with a certificate of an authority of the server's own, whose path is printed for clients to trust it.
        #[arg(long, env = "WRENN_TLS_OWN")]
        tls_own: bool,
        /// Let clients' webhooks have addresses that are not public, such as those of this machine and its network.
        #[arg(long, env = "WRENN_WEBHOOKS_PRIVATE")]
        webhooks_private: bool,
        /// How many times this machine's memory all running sandboxes may have together.
        #[arg(long, env = "WRENN_MEMORY_TIMES", default_value_t = 2.0, value_name = "TIMES")]
        memory_times: f64,
        /// How many times this machine's processors all running sandboxes may have together.
        #[arg(long, env = "WRENN_VCPUS_TIMES", default_value_t = 32.0, value_name = "TIMES")]
        vcpus_times: f64,
        /// How many seconds a sandbox waits for its turn where others have all that there is.
        #[arg(long, env = "WRENN_QUEUE_SECONDS", default_value_t = 20, value_name = "SECONDS")]
        queue_seconds: u32,
        /// How many VMMs may stand by, started before a create, a resume or a fork needs them: as many as were needed in the last
        /// ten seconds, and none after a minute in which none was. Each takes some 30 MiB; 0 for none.
        #[arg(long, env = "WRENN_STANDBYS", default_value_t = Options::STANDBYS, value_name = "COUNT")]
        standbys: usize,
        /// Each how many seconds the memory and files of what runs are kept on disk, so that after a kill or a power cut it goes
        /// on from there. Default: only at a pause.
        #[arg(long, env = "WRENN_CHECKPOINT_EVERY", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        checkpoint_every: Option<u64>,
        /// While this machine has less memory left than that, the sandbox that was not used for the longest is paused, one after
        /// another. Default: never.
        #[arg(long, env = "WRENN_PAUSE_BELOW_MIB", value_name = "MIB")]
        pause_below_mib: Option<u64>,
        /// The registries that builds of templates may pull images from, by their hosts' names, with commas between them; `*.`
        /// stands for any beginning.
        #[arg(long, env = "WRENN_REGISTRIES", value_name = "HOSTS", default_value = registries::DEFAULT)]
        registries: String,
        /// After how many days without use an image that was pulled for builds is removed, where no template and no sandbox needs
        /// it; 0 for never.
        #[arg(long, env = "WRENN_IMAGE_DAYS", default_value_t = 7, value_name = "DAYS")]
        image_days: u32,
        /// For how many seconds the server goes on after SIGTERM or SIGINT, with `/readyz` at 503, so that a load balancer
        /// turns away. A second signal ends that at once.
        #[arg(long, env = "WRENN_DRAIN_SECONDS", default_value_t = 0, value_name = "SECONDS")]
        drain_seconds: u32,
        /// How a line of the log looks, on standard error: text or json. `RUST_LOG` says what is logged.
        #[arg(long, env = "WRENN_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
        log_format: Format,
    },
    /// Make, list and revoke the keys that clients send as `X-API-Key`.
    Keys {
        #[command(subcommand)]
        command: keys::Keys,
    },
    /// List and remove what sandboxes are made from.
    Templates {
        #[command(subcommand)]
        command: Templates,
    },
    /// List, pull, remove and verify the images that sandboxes are made from.
    Images {
        #[command(subcommand)]
        command: images::Images,
    },
    /// Say what this machine has of what sandboxes need, which VMM is chosen and why, and what to do about the rest.
    /// Fails if no sandbox can run.
    Doctor,
    /// Make this machine ready: install the packages that are missing, and build the image that sandboxes start from. Does
    /// only what is not done yet, and says before what it will install, load and remove. Can be interrupted, and run again.
    Setup {
        /// The image's name.
        #[arg(long, default_value = "base")]
        image: String,
        /// A Debian package to have in the image besides wrenn's own. May be given more than once.
        #[arg(long = "package", value_name = "NAME")]
        packages: Vec<String>,
        /// Remove packages of the host that stand in the way of what is installed.
        #[arg(long)]
        allow_removals: bool,
        /// Have the image made anew, with today's packages and kernel, where it is there already.
        #[arg(long)]
        refresh: bool,
    },
    /// Print where a release of Firecracker is to be had and how to install it, or check a file of one. Fails if the file
    /// is not what was published.
    Firecracker {
        /// The archive of a release, with its `.sha256.txt` beside it, or a file of the archive, beside its `SHA256SUMS`.
        #[arg(long, value_name = "PATH")]
        check: Option<PathBuf>,
        /// The file's published SHA-256, where no list of them is beside it.
        #[arg(long, value_name = "HASH", requires = "check")]
        sha256: Option<String>,
    },
}

#[derive(Subcommand)]
enum Templates {
    /// List images, which are everybody's, and snapshots with the ids of their keys and with the images that they were made
    /// on.
    List,
    /// Remove a snapshot. Sandboxes that were made of it stay.
    Remove {
        /// The snapshot's name.
        name: String,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    // Nobody has chosen one before, and libraries that find none panic.
    rustls::crypto::ring::default_provider().install_default().ok();
    let Arguments { data_dir, database_url, command, .. } = arguments()?;
    let data_dir = data_dir.unwrap_or_else(wrenn_core::default_data_dir);
    match command {
        Command::Serve {
            listen,
            no_auth,
            domain,
            tls_cert,
            tls_key,
            tls_own,
            webhooks_private,
            memory_times,
            vcpus_times,
            queue_seconds,
            standbys,
            checkpoint_every,
            pause_below_mib,
            registries,
            image_days,
            drain_seconds,
            log_format,
        } => {
            memory::give_back_what_is_free();
            let log = Log::start(log_format)?;
            let tls = tls(tls_cert, tls_key, tls_own)?;
            let queued_max = Duration::from_secs(queue_seconds.into());
            let capacity = Capacity::of_this_machine(memory_times, vcpus_times, queued_max);
            let chores = Chores {
                checkpoint_each: checkpoint_every.map(Duration::from_secs),
                available_mib_min: pause_below_mib,
                image_unused: (image_days > 0).then(|| images::DAY * image_days),
            };
            let options = Options {
                data_dir,
                listen,
                needs_key: !no_auth,
                database_url,
                domain,
                tls,
                webhooks_reach: if webhooks_private { Reach::Any } else { Reach::Public },
                capacity,
                standbys,
                chores,
                registries: Registries::of(&registries),
            };
            serve(options, Duration::from_secs(drain_seconds.into())).await?;
            log.end().await;
        }
        Command::Keys { command } => keys::run(command, &data_dir, database_url.as_deref()).await?,
        Command::Images { command } => images::run(command, &data_dir).await?,
        Command::Templates { command } => templates(command, &data_dir, database_url.as_deref()).await?,
        Command::Doctor => {
            let diagnosis = Host::builder().data_dir(data_dir).doctor().await;
            print!("{diagnosis}");
            return Ok(if diagnosis.is_able() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Setup { image, packages, allow_removals, refresh } => {
            let image = packages.into_iter().fold(Image::builder(image), |image, package| image.package(package));
            let image = if refresh { image.refresh() } else { image };
            let setup = Setup { image, more_packages: Vec::new(), may_remove: allow_removals };
            setup.run(&data_dir, |line| println!("setup: {line}")).await?;
        }
        Command::Firecracker { check: None, .. } => print!("{}", firecracker::how_to_install()),
        Command::Firecracker { check: Some(file), sha256 } => {
            println!("{}", firecracker::check(&file, sha256.as_deref())?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the command line, the environment and the configuration file say.
fn arguments() -> anyhow::Result<Arguments> {
    // What is wrong without the file is wrong with it.
    let matches = Arguments::command().get_matches();
    let matches = config::with_file(Arguments::command(), &matches)?.try_get_matches();
    matches.and_then(|matches| Arguments::from_arg_matches(&matches)).context("the configuration file cannot be used")
}

/// They may be in different places, so that clap cannot see what they are together.
fn tls(certificate: Option<PathBuf>, key: Option<PathBuf>, own: bool) -> anyhow::Result<Option<Tls>> {
    match (certificate, key, own) {
        (None, None, false) => Ok(None),
        (None, None, true) => Ok(Some(Tls::Own)),
        (Some(certificate), Some(key), false) => Ok(Some(Tls::Files { certificate, key })),
        (_, _, true) => anyhow::bail!(
            "the certificate is the server's own, or one that is given: leave out --tls-own, or --tls-cert and --tls-key"
        ),
        (_, _, false) => anyhow::bail!("a certificate and its key belong together: give both --tls-cert and --tls-key"),
    }
}

async fn serve(options: Options, drained: Duration) -> anyhow::Result<()> {
    // From here on neither ends the program at once.
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let is_set_up = requirements().iter().all(|needed| needed.found.is_some());
    if !is_set_up || Image::names(&options.data_dir).is_ok_and(|names| names.is_empty()) {
        let setup = Setup { image: Image::builder("base"), more_packages: Vec::new(), may_remove: false };
        setup.run(&options.data_dir, |line| println!("setup: {line}")).await?;
    }
    let server = Server::open(&options).await?;
    if let Some(authority) = server.authority() {
        println!("wrenn-server: clients have to trust {}, such as by SSL_CERT_FILE", authority.display());
    }
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    println!("wrenn-server: listening on {scheme}://{}", server.address());
    if options.needs_key {
        println!("wrenn-server: make a key with `wrenn-server keys create NAME`, and send it as X-API-Key");
    }
    let memory = tokio::spawn(memory::keep_giving_back());
    let readiness = server.readiness();
    let stop = async move {
        let mut signalled = async || {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
        };
        signalled().await;
        readiness.leave();
        if !drained.is_zero() {
            println!("wrenn-server: serving for {} s more, and no longer ready", drained.as_secs());
            tokio::time::timeout(drained, signalled()).await.ok();
        }
        println!("wrenn-server: pausing what runs");
    };
    server.serve(stop).await?;
    memory.abort();
    println!("wrenn-server: all is paused; the next start wakes it");
    Ok(())
}

async fn templates(command: Templates, data_dir: &Path, database_url: Option<&str>) -> anyhow::Result<()> {
    let (host, store) = (Host::builder().data_dir(data_dir).open().await?, open_store(data_dir, database_url).await?);
    match command {
        Templates::List => {
            let bases = host.template_bases().await?;
            for template in host.templates().await? {
                let name = template.name().as_str();
                let owner = store.snapshot(name).await?.map(|record| record.owner);
                let kind = if template.is_snapshot() { "snapshot" } else { "image" };
                let base =
                    bases.iter().find(|base| base.template == *template.name()).map_or_else(String::new, |base| {
                        format!("  on {}{}", base.image, if base.is_current { "" } else { ", which has changed since" })
                    });
                println!("{kind:<8}  {:<8}  {name}{base}", owner.as_deref().unwrap_or("-"));
            }
        }
        Templates::Remove { name } => {
            host.remove_template(&name).await?;
            store.remove_snapshot(&name).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// `docs/server.md` has a table of the settings.
    #[test]
    fn the_table_of_settings_is_what_the_program_takes() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/server.md");
        let text = std::fs::read_to_string(&page).expect("the page is there");
        let (before, rest) = text.split_once(TABLE_BEGINS).expect("the page has a place for the table");
        let (_, after) = rest.split_once(TABLE_ENDS).expect("the table's place has an end");
        let right = format!("{before}{TABLE_BEGINS}\n{}{TABLE_ENDS}{after}", table());
        if std::env::var_os("WRENN_TEST_WRITE").is_some() {
            std::fs::write(&page, right).expect("written");
        } else {
            assert!(
                text == right,
                "the table of settings in docs/server.md is old: write it anew with \
                 `WRENN_TEST_WRITE=1 cargo test -p wrenn-server --bin wrenn-server`"
            );
        }
    }

    fn table() -> String {
        let mut command = Arguments::command();
        command.build();
        let mut table = String::from("| flag | environment | file | default | |\n|---|---|---|---|---|\n");
        for arg in config::settings(&command).filter(|arg| !is_inherited(&command, arg)) {
            let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
            let environment = arg.get_env().and_then(|name| name.to_str()).unwrap_or_default();
            let default = match arg.get_default_values() {
                // A flag that takes nothing.
                _ if !arg.get_action().takes_values() => String::new(),
                values => values.iter().filter_map(|value| value.to_str()).map(code).collect(),
            };
            let flag = format!("--{}", arg.get_long().expect("each setting has a flag"));
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert_eq!(flag.trim_start_matches('-').replace('-', "_"), arg.get_id().as_str());
            let (flag, environment, key) = (code(&flag), code(environment), code(arg.get_id().as_str()));
            writeln!(table, "| {flag} | {environment} | {key} | {default} | {help} |").expect("a text");
        }
        table
    }

    /// What belongs to all commands is with `serve` once more.
    fn is_inherited(command: &clap::Command, arg: &clap::Arg) -> bool {
        arg.is_global_set() && !command.get_arguments().any(|own| std::ptr::eq(own, arg))
    }

    const TABLE_BEGINS: &str = "<!-- made by the tests -->";
    const TABLE_ENDS: &str = "<!-- end -->";
}
