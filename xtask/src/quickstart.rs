//! `cargo xtask quickstart`: the main job on a real virtual machine, with what each part took.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};
use wrenn_core::{Host, Sandbox, Step};

use crate::shell;

pub(crate) async fn run() -> anyhow::Result<()> {
    let boot_began = Arc::new(Mutex::new(None));
    let observed = Arc::clone(&boot_began);
    let host = Host::builder().on_step(move |step| {
        if step == Step::Boot {
            println!("quickstart: booting the template, which is done once");
            *observed.lock().map_err(|_| std::io::Error::other("poisoned"))? = Some(Instant::now());
        }
        Ok(())
    });
    let host = host.open().await?;
    println!("quickstart: {}, {:?}: {}", host.vmm_version(), host.probe().acceleration, host.probe().reason);
    let mut table = Table::default();

    // The first create boots the template if need be; what is timed below is the second, as every later one is.
    let first = Sandbox::create(&host, "base").await.context("the first create failed")?;
    let began = *boot_began.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
    match began {
        Some(began) => table.time("template_boot", "boot of the template", began),
        None => table.row("template_boot", "boot of the template", Value::Null, "done before".to_owned()),
    }
    first.kill().await?;

    let began = Instant::now();
    let sandbox = Sandbox::create(&host, "base").await?;
    table.time("create", "create", began);
    let began = Instant::now();
    let run = sandbox.exec("python3 -c 'print(6 * 7)'").await?;
    table.time("first_exec", "first exec (python3)", began);
    ensure!(run.stdout == b"42\n", "python3 answered {run:?}");
    sandbox.exec("echo kept > /tmp/note").await?;

    let began = Instant::now();
    let paused = sandbox.pause().await?;
    table.time("pause", "pause", began);
    let stored = paused.stored_bytes();
    table.row("pause_stored", "  bytes stored", json!(stored), format!("{:.1} MiB", mib(stored)));

    let began = Instant::now();
    let sandbox = paused.resume().await?;
    table.time("resume", "resume", began);
    let began = Instant::now();
    let run = sandbox.exec("cat /tmp/note").await?;
    table.time("exec_after_resume", "first exec after it", began);
    ensure!(run.stdout == b"kept\n", "the note is gone: {run:?}");
    let report = sandbox.restore_report().await?.memory;
    let pages = format!("{} in {} faults, of {}", report.pages, report.faults, report.total_pages);
    table.row("pages_faulted", "  pages brought in", json!(report.pages), pages);
    table.note("pages_total", json!(report.total_pages));
    table.note("faults", json!(report.faults));

    let began = Instant::now();
    let children = sandbox.fork(4).await?;
    table.time("fork_4", "fork of 4", began);
    for child in children {
        let child = child?;
        ensure!(child.exec("cat /tmp/note").await?.stdout == b"kept\n", "a child lacks the note");
        child.kill().await?;
    }
    sandbox.kill().await?;

    table.print();
    let path = shell::target().join("quickstart.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&table.values)?).context("target/quickstart.json")?;
    println!("quickstart: all of it worked; the figures are in {}", path.display());
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[derive(Default)]
struct Table {
    rows: Vec<(String, String)>,
    values: Map<String, Value>,
}

impl Table {
    fn time(&mut self, key: &str, label: &str, began: Instant) {
        let ms = began.elapsed().as_secs_f64() * 1e3;
        println!("quickstart: {label}: {ms:.0} ms");
        self.rows.push((label.to_owned(), format!("{ms:.0} ms")));
        self.values.insert(format!("{key}_ms"), json!((ms * 10.0).round() / 10.0));
    }

    fn row(&mut self, key: &str, label: &str, value: Value, text: String) {
        self.rows.push((label.to_owned(), text));
        self.note(key, value);
    }

    fn note(&mut self, key: &str, value: Value) {
        self.values.insert(key.to_owned(), value);
    }

    fn print(&self) {
        println!();
        for (label, text) in &self.rows {
            println!("  {label:<24} {text:>20}");
        }
        println!();
    }
}
