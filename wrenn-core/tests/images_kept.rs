//! Images that are removed or that nobody uses any more, and what keeps them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use wrenn_core::image::Image;
use wrenn_core::{Error, Host, Sandbox, Template};

use common::{run, skip};
use registry::{Layer, Layout, busybox, busybox_root, data_dir};

async fn host(dir: &TempDir) -> Host {
    Host::builder().data_dir(dir.path()).open().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_removed_keeps_its_base_as_long_as_somebody_needs_it() {
    vm_test_or_return!();
    let Some(busybox) = busybox() else {
        return skip("an_image_that_is_removed…", &"there is no static busybox: run `cargo xtask setup`");
    };
    let layout = Layout::new().layer(&busybox_root(&busybox).done());
    let reference = layout.config(&json!({"Env": ["PATH=/bin"]}));
    let dir = data_dir();
    let host = host(&dir).await;
    host.ensure_image(Image::builder("once").oci(&reference)).await.unwrap();
    let images = || {
        let entries = fs::read_dir(dir.path().join("images")).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| !name.starts_with('.')).count()
    };
    let layers =
        || fs::read_dir(dir.path().join("layers")).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    let paused = Sandbox::create(&host, "once").await.unwrap().pause().await.unwrap();
    let running = Sandbox::create(&host, "once").await.unwrap();
    host.remove_image("once").await.unwrap();
    assert!(matches!(Sandbox::create(&host, "once").await, Err(Error::NotFound { .. })));
    assert!(matches!(host.remove_image("once").await, Err(Error::NotFound { .. })));
    assert_eq!((images(), layers()), (1, 1));
    assert_eq!(host.prune_images().await.unwrap().images.len(), 0);
    assert_eq!((images(), layers()), (1, 0), "layers are for building alone");
    let sandbox = paused.resume().await.unwrap();
    assert_eq!(run(&sandbox, "echo on").await, "on");
    sandbox.kill().await.unwrap();
    host.prune_images().await.unwrap();
    assert_eq!(images(), 1, "another runs");
    let child = running.fork(1).await.unwrap().remove(0).unwrap();
    assert_eq!(run(&child, "echo on").await, "on");
    child.kill().await.unwrap();
    running.kill().await.unwrap();
    assert_eq!(host.prune_images().await.unwrap().images.len(), 1);
    assert_eq!(images(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_nobody_uses_goes_once_no_template_needs_it_and_tells_how_much_that_was() {
    vm_test_or_return!();
    let Some(busybox) = busybox() else {
        return skip("an_image_that_nobody_uses…", &"there is no static busybox: run `cargo xtask setup`");
    };
    let layout = |content: &str| {
        let layout = Layout::new().layer(&busybox_root(&busybox).file("srv/x", 0o644, content.as_bytes()).done());
        let reference = layout.config(&json!({"Env": ["PATH=/bin"]}));
        (layout, reference)
    };
    let (dir, week) = (data_dir(), Duration::from_secs(7 * 24 * 3600));
    let host = host(&dir).await;
    let [(_one, needed), (_two, idle), (_three, recent), (_four, mine)] =
        ["needed", "idle", "recent", "mine"].map(layout);
    for (name, reference) in [("i-needed", &needed), ("i-idle", &idle), ("i-recent", &recent), ("mine", &mine)] {
        host.ensure_image(Image::builder(name).oci(reference)).await.unwrap();
    }
    Template::builder("i-needed").run("echo made > /srv/made").build(&host, "made").await.unwrap();
    Template::builder("i-idle").run("echo done").build(&host, "dropped").await.unwrap();
    host.remove_template("dropped").await.unwrap();
    let prune = async |age| {
        let pruned = host.prune_unused_images(age, |image| image.name().starts_with("i-")).await.unwrap();
        let names = Image::names(dir.path()).unwrap();
        (pruned, names)
    };
    let (pruned, names) = prune(week).await;
    assert_eq!((pruned.images.len(), pruned.bytes, names.len()), (0, 0, 4), "{names:?}");
    // As if that were long ago.
    let long_ago = std::time::SystemTime::now() - 2 * week;
    let age = |path: &Path| File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    for name in ["i-needed", "i-idle", "i-recent", "mine"] {
        age(&dir.path().join("images").join(name).join("image.json"));
    }
    for records in ["booted", "steps"] {
        fs::read_dir(dir.path().join(records)).unwrap().for_each(|entry| age(&entry.unwrap().path()));
    }
    Sandbox::create(&host, "i-recent").await.unwrap().kill().await.unwrap();
    let (pruned, names) = prune(week).await;
    assert_eq!(names, ["i-needed", "i-recent", "mine"]);
    assert_eq!((&*pruned.images, pruned.layers.len()), (&["i-idle".to_owned()][..], 1));
    assert!(pruned.bytes > busybox.len() as u64, "{pruned:?}");
    let sandbox = Sandbox::create(&host, "made").await.unwrap();
    assert_eq!(run(&sandbox, "cat /srv/made /srv/x").await, "made\nneeded");
    sandbox.kill().await.unwrap();
    host.remove_template("made").await.unwrap();
    let (_, names) = prune(week).await;
    assert_eq!(names, ["i-recent", "mine"]);
}

#[tokio::test]
async fn an_image_that_an_earlier_wrenn_has_named_is_found_by_its_reference_and_no_others_is() {
    let kernel = wrenn_core::default_data_dir().join("kernels/bookworm/kernel.json");
    if !kernel.is_file() {
        return skip("an_image_that_an_earlier_wrenn_has_named…", &"there is no kernel: run `cargo xtask setup`");
    }
    let (layout, dir) = (Layout::new().layer(&Layer::new().file("x", 0o644, b"x").done()), data_dir());
    let reference = layout.config(&json!({}));
    let path: String =
        reference.chars().map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' }).collect();
    let former = path.to_ascii_lowercase();
    let first = Image::builder(&former).oci(&reference).build(dir.path(), |_| {}).await.unwrap();
    let again = Image::from_oci(&reference).build(dir.path(), |_| {}).await.unwrap();
    assert_eq!((again.name(), again.digest()), (&*former, first.digest()));
    fs::remove_dir_all(dir.path().join("images").join(&former)).unwrap();
    let fresh = Image::from_oci(&reference).build(dir.path(), |_| {}).await.unwrap();
    assert!(fresh.name() != former && fresh.name().len() <= 63, "{}", fresh.name());
    // Another's image has the former name.
    let other = Layout::new().layer(&Layer::new().file("y", 0o644, b"y").done());
    Image::builder(&former).oci(other.config(&json!({}))).build(dir.path(), |_| {}).await.unwrap();
    let mine = Image::from_oci(&reference).build(dir.path(), |_| {}).await.unwrap();
    assert_eq!((mine.name(), mine.reference()), (fresh.name(), Some(&*reference)));
}
