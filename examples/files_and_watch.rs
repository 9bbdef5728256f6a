//! A program in a sandbox that reads files from one directory and writes results to another. A watch tells when there
//! is a result. The program goes on across a pause, and its output continues where it stopped.
//!
//! ```sh
//! cargo run --example files_and_watch
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example")]

use wrenn_core::{ChangeKind, Event, Host, Sandbox};

const WORKER: &str = r#"
import pathlib, time
inbox, outbox = pathlib.Path("in"), pathlib.Path("out")
print("ready", flush=True)
while True:
    for path in inbox.glob("*.txt"):
        (outbox / path.name).write_text(path.read_text().upper())
        path.unlink()
        print("done:", path.name, flush=True)
    time.sleep(0.1)
"#;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::builder().open().await?;
    host.ensure_image("base").on_step(|step| eprintln!("{step}")).await?;
    let sandbox = Sandbox::create(&host, "base").await?;
    let files = sandbox.files();
    files.make_dir("in").await?;
    files.make_dir("out").await?;
    let mut worker = sandbox.command("python3").args(["-c", WORKER]).spawn().await?;
    println!("the worker: {:?}", worker.next_event().await?);

    let mut results = sandbox.watch("out").start().await?;
    files.write("in/greeting.txt", "hello from the host\n").await?;
    while let Some(change) = results.next().await? {
        if change.kind == ChangeKind::Written {
            let result = files.read(&format!("out/{}", change.path)).await?;
            println!("out/{}: {}", change.path, String::from_utf8_lossy(&result).trim_end());
            break;
        }
    }

    let sandbox = sandbox.pause().await?.resume().await?;
    worker.reattach(&sandbox).await?;
    sandbox.write_file("in/again.txt", "and again, after a pause\n").await?;
    while let Some(event) = worker.next_event().await? {
        let Event::Stdout(line) = event else { continue };
        print!("the worker: {}", String::from_utf8_lossy(&line));
        if line.ends_with(b"again.txt\n") {
            break;
        }
    }
    for entry in sandbox.files().list("out").await? {
        println!("{} ({} bytes)", entry.path, entry.len);
    }
    sandbox.kill().await?;
    Ok(())
}
