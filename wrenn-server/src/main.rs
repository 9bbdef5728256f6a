//! `wrenn-server`: wrenn for operators.
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use wrenn_core::Host;

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
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { data_dir, command } = Arguments::parse();
    let mut host = Host::builder();
    if let Some(path) = data_dir {
        host = host.data_dir(path);
    }
    match command {
        Command::Doctor => {
            let diagnosis = host.doctor().await;
            print!("{diagnosis}");
            if diagnosis.is_able() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}
