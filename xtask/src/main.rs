//! Every command that a developer of wrenn, or a newcomer to it, runs: `cargo xtask COMMAND`.
#![expect(clippy::print_stdout, reason = "a command-line program")]

mod fuzz;
mod lab;
mod package;
mod quickstart;
mod report;
mod rooms;
mod setup;
mod shell;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use lab::{Acceleration, Errand, Job, Kernel, Vmm};

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
    /// Run the tests that need Firecracker (`WRENN_FIRECRACKER`, or the `PATH`). Where KVM does not serve they run in the
    /// lab: a virtual machine that emulates a processor with virtualization. Skipped, by name, without Firecracker.
    Lab {
        /// The VMM. For QEMU, with KVM, the targets are `fork`, `leftovers`, `lifecycle` and `refusals` unless others are named.
        #[arg(long, value_enum, default_value = "firecracker")]
        vmm: Vmm,
        /// The kernel of the lab's machine: Debian 12's or 13's. Where one is named, the lab is used even if KVM serves here.
        /// Default: 6.12.
        #[arg(long, value_enum)]
        kernel: Option<Kernel>,
        /// Whether QEMU's guests run under KVM or emulated.
        #[arg(long, value_enum, default_value = "kvm")]
        acceleration: Acceleration,
        /// A test target of `wrenn-core`; under Firecracker beside those called `firecracker*`.
        #[arg(long = "test", value_name = "TARGET")]
        targets: Vec<String>,
        /// Instead of tests: a shell line to run in the lab, where wrenn's variables for the VMM and its data are set.
        #[arg(long, value_name = "LINE", conflicts_with_all = ["targets", "arguments"])]
        command: Option<String>,
        /// Choose among the tests as Rust's test runner does: a part of a test's name, `--skip`, `--exact`, `--nocapture`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Fuzz what strangers send: each target has its share of the time. Needs a C++ compiler. Ends at the first input that
    /// breaks something, and says how to have it again.
    Fuzz {
        /// In all; 0 only builds the fuzzer and runs the seeds.
        minutes: u64,
        /// Instead of every target: those of these names.
        targets: Vec<String>,
    },
    /// Set up, then run the benches; `target/bench/summary.json` has their figures.
    Bench,
    /// Formatting, lints, the order of imports, the length of files, and documentation.
    Lint,
    /// Which file of a crate imports which: prints each circle, each import against the order of rooms in
    /// `ARCHITECTURE.md`, and how long the files are. Fails if anything is wrong.
    Rooms {
        /// A directory of the workspace, such as `wrenn-core`. Default: each.
        package: Option<String>,
    },
    /// Pack the crates as they are published, with the agent in them, and run a program in an empty directory that uses
    /// them.
    Package {
        /// Use them by path and from git as well, which builds everything anew, twice; and fail if the agent differs when it is
        /// built in another place.
        #[arg(long)]
        every_way: bool,
    },
    /// The whole gate: `lint`, then `test`, then `package`.
    Ci,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Setup => setup::run().await,
        Command::Quickstart => {
            setup::run().await?;
            quickstart::run().await
        }
        Command::Test { quick, filter } => test::run(quick, &filter).await,
        Command::Lab { vmm, kernel, acceleration, targets, command, arguments } => {
            let job = command.map_or(Job::Tests { targets, arguments }, Job::Command);
            let status = lab::run(Errand { vmm, acceleration, kernel, job }).await?;
            return Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)));
        }
        Command::Bench => {
            setup::run().await?;
            shell::cargo(&["bench", "--package", "wrenn-benches"])
        }
        Command::Fuzz { minutes, targets } => fuzz::run(minutes, &targets),
        Command::Package { every_way } => package::run(every_way).await,
        Command::Lint => lint(),
        Command::Rooms { package } => rooms::run(package.as_deref()),
        Command::Ci => {
            lint()?;
            test::run(false, &[]).await?;
            package::run(false).await
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

fn lint() -> anyhow::Result<()> {
    shell::cargo(&["fmt", "--all", "--check"])?;
    rooms::lint()?;
    setup::for_building()?;
    shell::cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "--deny", "warnings"])?;
    shell::cargo_with(&["doc", "--workspace", "--no-deps", "--quiet"], &[("RUSTDOCFLAGS", "--deny warnings")])?;
    println!("lint: nothing to say");
    Ok(())
}
