//! Every command that a developer of wrenn, or a newcomer to it, runs: `cargo xtask COMMAND`.
#![expect(clippy::print_stdout, reason = "a command-line program")]

mod quickstart;
mod setup;
mod shell;
mod test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "wrenn's developer commands", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make this machine ready: packages, the agent, the kernel, the `base` image. Does only what is not done yet.
    Setup,
    /// Set up, then create, exec, pause, resume and fork a real sandbox, and print what each took.
    Quickstart,
    /// Set up, then run the tests. `--quick` leaves out those that start virtual machines.
    Test {
        /// Only what needs no virtual machine: a minute or so.
        #[arg(long)]
        quick: bool,
        /// Passed on to `cargo test`.
        #[arg(trailing_var_arg = true)]
        filter: Vec<String>,
    },
    /// Set up, then run the benches; `target/bench/summary.json` has their figures.
    Bench,
    /// Formatting, lints and documentation.
    Lint,
    /// The whole gate: `lint`, then `test`.
    Ci,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Setup => setup::run().await,
        Command::Quickstart => {
            setup::run().await?;
            quickstart::run().await
        }
        Command::Test { quick, filter } => test::run(quick, &filter).await,
        Command::Bench => {
            setup::run().await?;
            shell::cargo(&["bench", "--package", "wrenn-benches"])
        }
        Command::Lint => lint(),
        Command::Ci => {
            lint()?;
            test::run(false, &[]).await
        }
    }
}

fn lint() -> anyhow::Result<()> {
    shell::cargo(&["fmt", "--all", "--check"])?;
    shell::cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "--deny", "warnings"])?;
    shell::cargo_with(&["doc", "--workspace", "--no-deps", "--quiet"], &[("RUSTDOCFLAGS", "--deny warnings")])?;
    println!("lint: nothing to say");
    Ok(())
}
