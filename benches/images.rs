//! What an OCI image costs: its making beside `tar`, and its size beside its files.
#![expect(clippy::cast_precision_loss, reason = "for display")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;
use wrenn_core::image::Image;

mod support;
use support::{Goal, note, report, skipped};

const LAYERS: usize = 20;
const ROUNDS: usize = 3;

/// Files of this machine, as much as it has of the kind that images have.
const FILES_OF: [&str; 3] = ["/usr/lib", "/usr/share", "/usr/bin"];
const BYTES: u64 = 1 << 30;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let kernels = wrenn_core::default_data_dir().join("kernels");
    if !kernels.is_dir() {
        skipped("images", &"there is no kernel: run `cargo xtask setup`");
        return Ok(());
    }
    let layout = tempfile::tempdir()?;
    let made = make_layout(layout.path())?;
    note(&format!("{LAYERS} layers of {} MiB of files, {} MiB with gzip", made.unpacked >> 20, made.packed >> 20));
    let reference = format!("oci:{}", layout.path().display());
    let (mut values, mut references) = (Vec::new(), Vec::new());
    let mut base_bytes = 0;
    for round in 0..=ROUNDS {
        let (data, tree) = (tempfile::tempdir()?, tempfile::tempdir()?);
        std::os::unix::fs::symlink(&kernels, data.path().join("kernels"))?;
        let began = Instant::now();
        for blob in &made.blobs {
            let status = Command::new("tar").arg("-xzf").arg(blob).arg("-C").arg(tree.path()).status()?;
            ensure!(status.success(), "tar failed");
        }
        let reference_took = began.elapsed().as_secs_f64() * 1e3;
        let began = Instant::now();
        let image = Image::builder("bench").oci(&reference).build(data.path(), |_| {}).await?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        base_bytes = fs::metadata(image.base())?.len();
        if round > 0 {
            values.push(took);
            references.push(reference_took);
        }
    }
    support::report_percentiles("image_build", "ms", &values, &references, [Goal::AtMost(1.2), Goal::None]);
    report("image_size", "MiB", mib(base_bytes), mib(made.unpacked), Goal::AtMost(1.2));
    Ok(())
}

struct Made {
    blobs: Vec<std::path::PathBuf>,
    /// The bytes of all files.
    unpacked: u64,
    packed: u64,
}

/// An image in a layout, whose layers have files of this machine.
fn make_layout(directory: &Path) -> anyhow::Result<Made> {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let files = Command::new("find").args(FILES_OF).args(["-xdev", "-type", "f", "-printf", "%s %p\\n"]).output()?;
    let files = String::from_utf8_lossy(&files.stdout).into_owned();
    let mut lists = vec![String::new(); LAYERS];
    let (mut unpacked, mut number) = (0_u64, 0);
    for line in files.lines() {
        let Some((size, path)) = line.split_once(' ') else { continue };
        let size: u64 = size.parse()?;
        if unpacked + size > BYTES || path.contains('\\') {
            continue;
        }
        unpacked += size;
        number += 1;
        lists[number % LAYERS] += &format!("{}\n", path.trim_start_matches('/'));
    }
    let (mut layers, mut diff_ids, mut made) = (Vec::new(), Vec::new(), Vec::new());
    let mut packed = 0;
    for (number, list) in lists.iter().enumerate() {
        let (names, tar) = (directory.join("names"), directory.join(format!("{number}.tar")));
        fs::write(&names, list)?;
        run(Command::new("tar").args(["-C", "/", "--verbatim-files-from", "-T"]).arg(&names).arg("-cf").arg(&tar))?;
        let diff_id = sha256(&tar)?;
        run(Command::new("gzip").args(["-3", "-n"]).arg(&tar))?;
        let packed_file = directory.join(format!("{number}.tar.gz"));
        let digest = sha256(&packed_file)?;
        let size = fs::metadata(&packed_file)?.len();
        let blob = blobs.join(&digest);
        fs::rename(&packed_file, &blob)?;
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": format!("sha256:{digest}"), "size": size,
        }));
        diff_ids.push(format!("sha256:{diff_id}"));
        made.push(blob);
        packed += size;
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = descriptor(&blobs, "application/vnd.oci.image.config.v1+json", &config)?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let manifest = descriptor(&blobs, "application/vnd.oci.image.manifest.v1+json", &manifest)?;
    fs::write(directory.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    Ok(Made { blobs: made, unpacked, packed })
}

fn descriptor(blobs: &Path, kind: &str, value: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
    let (text, path) = (value.to_string(), blobs.join("new"));
    fs::write(&path, &text)?;
    let digest = sha256(&path)?;
    fs::rename(&path, blobs.join(&digest))?;
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": text.len()}))
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let output = Command::new("sha256sum").arg(path).output()?;
    let text = String::from_utf8(output.stdout)?;
    text.split(' ').next().map(str::to_owned).context("sha256sum prints a sum")
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    ensure!(command.stderr(Stdio::null()).status()?.success(), "{command:?} failed");
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
