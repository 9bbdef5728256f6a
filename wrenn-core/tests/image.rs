//! What an image promises: nothing half-built, nothing taken on trust, and only what changed made again.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use wrenn_core::image::{Image, ImageError, Step, requirements};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[test]
fn names_that_could_leave_the_directory_are_refused() {
    let data_dir = Path::new("/nonexistent");
    for name in ["", ".", "..", "../base", "a/b", "Base", "-a", ".a", "a@b", "a b", "ü", &"a".repeat(64)] {
        let opened = Image::open(data_dir, name);
        assert!(matches!(opened, Err(ImageError::Name(_))), "{name}");
    }
    for name in ["a", "0", "base-1.2_x", &"a".repeat(63)] {
        let opened = Image::open(data_dir, name);
        assert!(matches!(opened, Err(ImageError::NotFound { .. })), "{name}");
    }
}

#[test]
fn a_missing_image_says_how_to_get_it() -> Result<()> {
    let data_dir = tempfile::tempdir()?;
    let error = Image::open(data_dir.path(), "base").map(drop).map_err(|error| error.to_string());
    assert!(error.is_err_and(|text| text.contains("`Host::ensure_image`")));
    Ok(())
}

#[test]
fn a_broken_manifest_is_refused_by_name_and_left_alone() -> Result<()> {
    let data_dir = tempfile::tempdir()?;
    let directory = data_dir.path().join("images/base");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("image.json"), "{\"format\": 1, ")?;
    let opened = Image::open(data_dir.path(), "base");
    assert!(matches!(opened, Err(ImageError::BrokenManifest { .. })), "{opened:?}");

    let agent = agent(data_dir.path())?;
    let build = Image::builder("base").agent(agent);
    let built = runtime()?.block_on(build.build(data_dir.path(), |_| {}));
    assert!(matches!(built, Err(ImageError::BrokenManifest { .. })), "{built:?}");
    assert!(directory.join("image.json").exists());
    Ok(())
}

#[test]
fn settings_are_checked_before_anything_runs() -> Result<()> {
    let data_dir = tempfile::tempdir()?;
    let agent = agent(data_dir.path())?;
    let builder = || Image::builder("base").agent(&agent);
    let script = data_dir.path().join("script");
    fs::write(&script, "#!/bin/sh\n")?;
    let cases = [
        builder().suite("--mode=chrootless"),
        builder().suite("book worm"),
        builder().package("jq,--x"),
        builder().package("-x"),
        builder().drive_size_bytes(1 << 20),
        builder().drive_size_bytes((64 << 20) + 1),
    ];
    let runtime = runtime()?;
    for case in cases {
        let built = runtime.block_on(case.build(data_dir.path(), |_| {}));
        assert!(matches!(built, Err(ImageError::Setting { .. })), "{built:?}");
    }
    let built = runtime.block_on(builder().agent(script).build(data_dir.path(), |_| {}));
    assert!(matches!(built, Err(ImageError::Agent { .. })), "{built:?}");
    assert!(!data_dir.path().join("images").exists());
    Ok(())
}

#[test]
fn requirements_name_a_package_for_each_program() {
    let requirements = requirements();
    assert!(requirements.iter().any(|needed| needed.program == "mmdebstrap"));
    assert!(requirements.iter().all(|needed| !needed.package.is_empty()));
}

#[test]
fn a_build_makes_again_only_what_changed() -> Result<()> {
    if std::env::var_os("WRENN_TEST_IMAGE_BUILD").is_none() {
        let reason = "WRENN_TEST_IMAGE_BUILD is not set (takes two minutes, root and network)";
        writeln!(io::stderr(), "skipped: a_build_makes_again_only_what_changed: {reason}")?;
        return Ok(());
    }
    let data_dir = tempfile::tempdir()?;
    let data_dir = data_dir.path();
    let agent = agent(data_dir)?;
    let runtime = runtime()?;
    let builder = Image::builder("base").agent(&agent).drive_size_bytes(1 << 30);
    let image = runtime.block_on(builder.build(data_dir, report))?;
    image.verify()?;
    assert!(image.has_current_agent());
    assert!(fs::metadata(image.drive_template())?.blocks() * 512 < 256 * 1024);
    assert!(image.modules().any(|module| module == "virtio_blk.ko"));

    let mut steps = Vec::new();
    let again = runtime.block_on(builder.build(data_dir, |step| steps.push(step.clone())))?;
    assert_eq!((again.digest(), steps), (image.digest(), vec![Step::Current]));

    let mut other = fs::read(&agent)?;
    other.push(0);
    fs::write(&agent, other)?;
    let inode = fs::metadata(image.base())?.ino();
    let refreshed = runtime.block_on(builder.build(data_dir, report))?;
    assert_ne!(refreshed.digest(), again.digest());
    assert_eq!(refreshed.base_digest(), image.base_digest());
    assert_eq!(fs::metadata(refreshed.base())?.ino(), inode);

    let builder = builder.drive_size_bytes(64 << 20);
    let resized = runtime.block_on(builder.build(data_dir, report))?;
    assert_eq!(fs::metadata(resized.drive_template())?.len(), 64 << 20);
    assert_eq!(fs::metadata(resized.base())?.ino(), inode);

    let builder = builder.package("tree");
    let rebuilt = runtime.block_on(builder.build(data_dir, report))?;
    assert!(rebuilt.packages().any(|package| package.name == "tree"));
    let kept = Image::open_digest(data_dir, "base", &resized.digest())?;
    assert_eq!(fs::metadata(kept.base())?.ino(), inode);
    kept.verify()?;
    rebuilt.verify()?;

    let left = fs::read_dir(data_dir.join("images"))?;
    let left: Vec<_> = left.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    assert!(!left.iter().any(|name| name.starts_with(".tmp-")), "{left:?}");
    Ok(())
}

fn report(step: &Step) {
    writeln!(io::stderr(), "{step}").ok();
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The least that passes for a static x86-64 binary: an ELF header and no program headers.
fn agent(directory: &Path) -> io::Result<PathBuf> {
    let mut elf = vec![0; 64];
    elf[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    elf[16] = 2;
    elf[18] = 62;
    elf[20] = 1;
    elf[52] = 64;
    let path = directory.join("agent");
    fs::write(&path, elf)?;
    Ok(path)
}
