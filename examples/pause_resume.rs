//! Pauses a sandbox with a running process whose data are in memory. Run the example twice: the first run starts the
//! process, pauses the sandbox and ends. Each later run resumes the sandbox, and finds that the process goes on
//! counting.
//!
//! ```sh
//! cargo run --example pause_resume
//! cargo run --example pause_resume
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example")]

use std::time::{Duration, Instant};

use wrenn_core::{Host, Sandbox, SandboxFilter};

const LABEL: &str = "example";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::builder().open().await?;
    host.ensure_image("base").on_step(|step| eprintln!("{step}")).await?;

    let earlier = host.sandboxes(&SandboxFilter::new().label(LABEL, "counter")).await?.into_iter().next();
    let sandbox = match earlier {
        Some(info) => {
            let began = Instant::now();
            let sandbox = host.paused(&info.id).await?.resume().await?;
            println!("resumed {} in {:?}", info.id, began.elapsed());
            sandbox
        }
        None => {
            let sandbox = Sandbox::builder(&host, "base").label(LABEL, "counter").create().await?;
            let count = "n=0; while true; do n=$((n + 1)); echo $n > /dev/shm/count; sleep 0.1; done";
            sandbox.exec(&format!("nohup bash -c '{count}' > /dev/null 2>&1 &")).await?;
            println!("created {}", sandbox.id());
            sandbox
        }
    };

    tokio::time::sleep(Duration::from_secs(1)).await;
    let count = sandbox.exec("cat /dev/shm/count").await?;
    println!("the counter, which is in memory alone, is at {}", count.stdout_utf8().trim());

    let began = Instant::now();
    let paused = sandbox.pause().await?;
    println!("paused in {:?}; this pause stored {} KiB", began.elapsed(), paused.stored_bytes() / 1024);
    Ok(())
}
