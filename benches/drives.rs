//! What a sandbox's drive adds to the stop of a snapshot, and to a pause.
//!
//! `fork_stop_drive` is how long a snapshot, as a fork takes one, stops its sandbox once so much was written to the drive, beside
//! the same when nothing was: on the file system of the data directory, and on file systems of the bench's own. The
//! guest writes past its page cache, so that its memory stays as it is. `pause_drive` is what 16 MiB on the drive add to a
//! pause, beside writing 16 MiB to a file and having them durable.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use wrenn_core::{Host, Sandbox, SaveReport, default_data_dir};

mod support;
use support::{Goal, note, percentile, report, report_percentiles, skipped};

const ROUNDS: usize = 7;
const MUCH_ROUNDS: usize = 2;
const PAUSED_MIB: u32 = 16;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::builder().open().await?;
    stops(&host, "here").await?;
    pauses(&host).await?;
    drop(host);
    for kind in ["ext4", "xfs", "btrfs"] {
        let mount = match Mount::of_kind(kind) {
            Ok(mount) => mount,
            Err(reason) => {
                skipped(&format!("fork_stop_drive/{kind}"), &format!("{reason:#}"));
                continue;
            }
        };
        std::os::unix::fs::symlink(default_data_dir().join("images"), mount.at.path().join("images"))?;
        stops(&Host::builder().data_dir(mount.at.path()).open().await?, kind).await?;
    }
    Ok(())
}

async fn stops(host: &Host, file_system: &str) -> anyhow::Result<()> {
    let sandbox = Sandbox::create(host, "base").await?;
    // The first one has the most of the memory.
    snapshot(host, &sandbox).await?;
    let (mut values, mut references, mut much) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        sandbox.exec("sync").await?;
        references.push(stop_ms(&snapshot(host, &sandbox).await?));
        write(&sandbox, 128).await?;
        let saved = snapshot(host, &sandbox).await?;
        note(&format!("{file_system}: {:?}, published in {:?}", saved.drive, saved.steps.publish));
        values.push(stop_ms(&saved));
    }
    for _ in 0..MUCH_ROUNDS {
        write(&sandbox, 2048).await?;
        much.push(stop_ms(&snapshot(host, &sandbox).await?));
    }
    for (mib, values) in [(128, &values), (2048, &much)] {
        let name = format!("fork_stop_drive/{file_system}/{mib}");
        report_percentiles(&name, "ms", values, &references, [Goal::AtMost(1.5), Goal::None]);
        report(&format!("{name}/limit"), "ms", percentile(values, 50), 20.0, Goal::AtMost(1.0));
    }
    Ok(sandbox.kill().await?)
}

async fn pauses(host: &Host) -> anyhow::Result<()> {
    let mut sandbox = Sandbox::create(host, "base").await?;
    write(&sandbox, 128).await?;
    let (mut with, mut without, mut references) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        for (mib, samples) in [(PAUSED_MIB, &mut with), (0, &mut without)] {
            write(&sandbox, mib).await?;
            let paused = sandbox.pause().await?;
            let report = paused.save_report().context("it was paused by this program")?;
            if round > 0 {
                samples.push(report.steps.whole.as_secs_f64() * 1e3);
            }
            sandbox = paused.resume().await?;
        }
        references.push(durable_write_ms()?);
    }
    sandbox.kill().await?;
    let without = percentile(&without, 50);
    let added: Vec<f64> = with.iter().map(|whole| whole - without).collect();
    note(&format!("a pause for which nothing was written to the drive: {without:.1} ms"));
    report_percentiles("pause_drive", "ms", &added, &references, [Goal::AtMost(1.5), Goal::None]);
    Ok(())
}

/// Writes so much to the drive, past the guest's page cache.
async fn write(sandbox: &Sandbox, mib: u32) -> anyhow::Result<()> {
    let seed = "test -e seed || dd if=/dev/urandom of=seed bs=1M count=64 oflag=direct status=none";
    let flags = "bs=1M iflag=direct oflag=direct conv=notrunc status=none";
    let (whole, rest) = (mib / 64, mib % 64);
    let line = format!(
        "{seed}; for i in $(seq {whole}); do dd if=seed of=written$i {flags}; done; \
         test {rest} = 0 || dd if=seed of=rest count={rest} {flags}"
    );
    let output = sandbox.exec(&line).await?;
    ensure!(output.status.success(), "{output:?}");
    // The next one writes something else.
    sandbox.exec("printf $RANDOM | dd of=seed conv=notrunc status=none; sync").await?;
    Ok(())
}

async fn snapshot(host: &Host, sandbox: &Sandbox) -> anyhow::Result<SaveReport> {
    sandbox.snapshot("bench-drives").await?;
    host.remove_template("bench-drives").await?;
    sandbox.save_report().await?.context("there was a snapshot")
}

fn stop_ms(report: &SaveReport) -> f64 {
    report.stopped_for.as_secs_f64() * 1e3
}

fn durable_write_ms() -> anyhow::Result<f64> {
    let bytes = vec![7; (PAUSED_MIB as usize) << 20];
    let mut file = tempfile::NamedTempFile::new_in(default_data_dir())?;
    let began = Instant::now();
    file.write_all(&bytes)?;
    file.as_file().sync_all()?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// A file system of the bench's own, in a sparse file.
struct Mount {
    at: TempDir,
    _image: TempDir,
}

impl Mount {
    fn of_kind(kind: &str) -> anyhow::Result<Self> {
        let (at, image) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let file = image.path().join(kind);
        std::fs::File::create(&file)?.set_len(16 << 30)?;
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&file))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(at.path()))?;
        Ok(Self { at, _image: image })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: what a sandbox that has just ended had open may be closed a moment later.
        run(Command::new("umount").arg("-l").arg(self.at.path())).expect("it is mounted");
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("no {}", Path::new(command.get_program()).display()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
