//! `wrenn-server`: wrenn for operators.
#![expect(clippy::print_stdout, reason = "a command-line program")]

mod firecracker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use wrenn_core::Host;
use wrenn_core::image::Image;
use wrenn_server::setup::Setup;

#[derive(Parser)]
#[command(version, about, arg_required_else_help = true)]
struct Arguments {
    /// Where everything is kept. Default: `WRENN_DATA_DIR`, else /var/lib/wrenn.
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { data_dir, command } = Arguments::parse();
    let data_dir = data_dir.unwrap_or_else(wrenn_core::default_data_dir);
    match command {
        Command::Doctor => {
            let diagnosis = Host::builder().data_dir(data_dir).doctor().await;
            print!("{diagnosis}");
            return Ok(if diagnosis.is_able() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Setup { image, packages, allow_removals } => {
            let image = packages.into_iter().fold(Image::builder(image), |image, package| image.package(package));
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
