//! An image with an agent of an older wrenn: renewed by the next create, and no paused sandbox is lost by it.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{own_host, run};
use serde_json::Value;
use wrenn_core::image::{Image, Step};
use wrenn_core::{Sandbox, default_data_dir};

#[tokio::test]
async fn an_older_agent_is_renewed_at_the_next_create_and_what_was_paused_under_it_resumes() {
    vm_test_or_return!();
    let dir = tempfile::Builder::new().prefix("wrenn-test-").tempdir().unwrap();
    copy_image(dir.path());
    let current = Image::open(dir.path(), "base").unwrap();
    assert!(current.has_current_agent());

    // Bytes after its end change an agent's digest, and nothing of what it does.
    let older = dir.path().join("older");
    let agent = agent_of(&current);
    fs::write(&older, [&agent[..], &[0; 64]].concat()).unwrap();
    let built = Image::builder("base").agent(&older).build(dir.path(), |_| {}).await.unwrap();
    assert_ne!(built.digest(), current.digest());
    let host = own_host(&dir).open().await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, "echo kept > note").await;
    let paused = sandbox.pause().await.unwrap();
    let digest = || Image::open(dir.path(), "base").unwrap().digest();
    assert_eq!(digest(), built.digest(), "an agent that the builder was given stays");

    // What an older wrenn has left: its own agent, which nobody named.
    edit_manifest(dir.path(), |manifest| manifest["own_agent"] = false.into());
    assert!(!Image::open(dir.path(), "base").unwrap().has_current_agent());
    let fresh = Sandbox::create(&host, "base").await.unwrap();
    assert_eq!(digest(), current.digest(), "the create has renewed it");
    assert_eq!(run(&fresh, "echo $((6 * 7))").await, "42");
    let resumed = paused.resume().await.unwrap();
    assert_eq!(run(&resumed, "cat note").await, "kept");
    fresh.kill().await.unwrap();
    resumed.kill().await.unwrap();
}

#[tokio::test]
async fn an_image_that_is_to_be_there_is_left_alone_or_renewed_and_tells_its_steps() {
    vm_test_or_return!();
    let dir = tempfile::Builder::new().prefix("wrenn-test-").tempdir().unwrap();
    copy_image(dir.path());
    let host = own_host(&dir).open().await.unwrap();
    let steps_of = async || {
        let steps = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&steps);
        let image =
            host.ensure_image("base").on_step(move |step| told.lock().unwrap().push(step.clone())).await.unwrap();
        let steps = steps.lock().unwrap().clone();
        (image, steps)
    };
    let (first, steps) = steps_of().await;
    assert_eq!(steps, [Step::Current]);
    edit_manifest(dir.path(), |manifest| manifest["agent_sha256"] = "of an older one".into());
    let (second, steps) = steps_of().await;
    assert_eq!(steps, [Step::Initramfs, Step::Publishing]);
    assert_eq!(second.digest(), first.digest());
    assert!(second.has_current_agent());
    let error = host.ensure_image("../base").await.unwrap_err();
    assert_eq!(error.code(), "invalid_input");
}

/// The shared image as a copy that this test may change: the files are links, and none is ever written in place.
fn copy_image(data_dir: &Path) {
    let (from, to) = (default_data_dir().join("images/base"), data_dir.join("images/base"));
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(&from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if fs::hard_link(&from, &to).is_err() {
            assert!(
                std::process::Command::new("cp").arg("--sparse=always").args([from, to]).status().unwrap().success()
            );
        }
    }
    edit_manifest(data_dir, |_| {});
}

/// Replaces the manifest, so that the one that a link leads to stays as it is.
fn edit_manifest(data_dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = data_dir.join("images/base/image.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut manifest);
    fs::remove_file(&path).unwrap();
    fs::write(&path, manifest.to_string()).unwrap();
}

/// The agent in the image's initramfs.
fn agent_of(image: &Image) -> Vec<u8> {
    use std::io::Read as _;
    let archive = fs::read(image.initramfs()).unwrap();
    let mut rest = &archive[..];
    loop {
        let mut entry = cpio::newc::Reader::new(rest).unwrap();
        if entry.entry().name() == "init" {
            let mut agent = Vec::new();
            entry.read_to_end(&mut agent).unwrap();
            return agent;
        }
        rest = entry.finish().unwrap();
    }
}
