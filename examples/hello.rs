//! Creates a sandbox, runs a command in it, and prints the output.
//!
//! ```sh
//! cargo run --example hello
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example")]

use wrenn_core::{Host, Sandbox};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::builder().open().await?;
    host.ensure_image("base").on_step(|step| eprintln!("{step}")).await?;
    let sandbox = Sandbox::create(&host, "base").await?;

    let run = sandbox.exec("echo hello from $(hostname), Linux $(uname -r)").await?;
    print!("{}", run.stdout_utf8());

    sandbox.kill().await?;
    Ok(())
}
