//! Makes four copies of one running sandbox. Each copy tries another way to sort the same file.
//!
//! ```sh
//! cargo run --example fork_and_compare
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example")]

use std::time::Instant;

use wrenn_core::{Host, Sandbox};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::builder().open().await?;
    host.ensure_image("base").on_step(|step| eprintln!("{step}")).await?;
    let sandbox = Sandbox::create(&host, "base").await?;

    // The expensive part, done once.
    sandbox.exec("seq 1 20000 | shuf --random-source=<(yes) > /tmp/numbers").await?;

    let began = Instant::now();
    let children = sandbox.fork(4).await?;
    println!("forked 4 in {:?}; the parent goes on", began.elapsed());

    let attempts = ["sort -n", "sort -n --parallel=1", "sort -n -S 1M", "sort -g"];
    for (child, attempt) in children.into_iter().zip(attempts) {
        // A child that fails does not disturb the others.
        let child = child?;
        let run = child.exec(&format!("{attempt} /tmp/numbers | md5sum")).await?;
        println!("{:<22} on {}: {:?}  {}", attempt, child.id(), run.duration, run.stdout_utf8().trim());
        child.kill().await?;
    }

    sandbox.kill().await?;
    Ok(())
}
