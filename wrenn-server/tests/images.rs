//! `wrenn-server images`, as an operator uses it: also where it is killed, and where the disk is full.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "../../wrenn-core/tests/common/registry.rs"]
mod registry;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::Rng as _;
use serde_json::json;

use common::wrenn_server;
use registry::{Layer, Layout};

/// Why the tests here cannot run, which fetch no kernel of their own.
fn can_run(test: &str) -> bool {
    let is_there = wrenn_core::default_data_dir().join("kernels/bookworm/kernel.json").is_file();
    if !is_there {
        writeln!(std::io::stderr(), "skipped: {test}: there is no kernel: run `cargo xtask setup`")
            .expect("standard error is open");
    }
    is_there
}

fn share_kernels(data_dir: &Path) {
    std::os::unix::fs::symlink(wrenn_core::default_data_dir().join("kernels"), data_dir.join("kernels")).unwrap();
}

/// An image of some layers that no compression makes shorter.
fn layout(layers: usize, mib: usize) -> (Layout, String) {
    let mut bytes = vec![0; mib << 20];
    let layout = (0..layers).fold(Layout::new(), |layout, number| {
        rand::rng().fill_bytes(&mut bytes);
        layout.layer(&Layer::new().file(&format!("file-{number}"), 0o644, &bytes).done())
    });
    let reference = layout.config(&json!({}));
    (layout, reference)
}

fn images(data_dir: &Path, args: &[&str]) -> (bool, String) {
    let output = wrenn_server(data_dir, &["images"]).args(args).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// The names in a directory but those of locks, which stay.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with(".lock"));
    names.sort();
    names
}

#[test]
fn a_pull_that_is_killed_leaves_whole_layers_alone_and_the_next_one_goes_on() {
    if !can_run("a_pull_that_is_killed_leaves_whole_layers_alone_and_the_next_one_goes_on") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    share_kernels(dir.path());
    let (_layout, reference) = layout(6, 24);
    for round in 1..=12 {
        let mut pull = wrenn_server(dir.path(), &["images", "pull", "--name", "big", &reference])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(60 * round));
        pull.kill().unwrap();
        pull.wait().unwrap();
        // An image is whole or not there.
        if names(&dir.path().join("images")).contains(&"big".to_owned()) {
            assert!(images(dir.path(), &["verify", "big"]).0);
        }
    }
    let (is_done, said) = images(dir.path(), &["pull", "--name", "big", &reference]);
    assert!(is_done, "{said}");
    let (is_whole, said) = images(dir.path(), &["verify"]);
    assert!(is_whole && said.contains("big is what was built") && !said.contains("damaged"), "{said}");
    let layers = names(&dir.path().join("layers"));
    assert!(layers.len() == 6 && layers.iter().all(|name| name.len() == 64), "{layers:?}");
    let (_, said) = images(dir.path(), &["pull", "--name", "big", &reference]);
    assert!(said.contains("the image is up to date"), "{said}");
    let (_, said) = images(dir.path(), &["ls"]);
    assert!(said.contains("big") && said.contains(&reference), "{said}");
}

#[test]
fn a_pull_that_finds_no_space_leaves_nothing_half_made_and_goes_on_where_there_is_some() {
    let test = "a_pull_that_finds_no_space_leaves_nothing_half_made_and_goes_on_where_there_is_some";
    if !can_run(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let mount = |args: &[&str]| Command::new("mount").args(args).status().is_ok_and(|status| status.success());
    if !mount(&["-t", "tmpfs", "-o", "size=40m", "tmpfs", at]) {
        return writeln!(std::io::stderr(), "skipped: {test}: only root mounts").expect("standard error is open");
    }
    share_kernels(dir.path());
    let (_layout, reference) = layout(3, 16);
    // Enough for one layer or two, then for all and no base, then for all.
    for (size, is_enough) in [("40m", false), ("70m", false), ("400m", true)] {
        assert!(mount(&["-o", &format!("remount,size={size}"), at]));
        let (is_done, said) = images(dir.path(), &["pull", "--name", "big", &reference]);
        assert_eq!(is_done, is_enough, "{size}: {said}");
        if is_enough {
            assert!(said.contains("is here already"), "{said}");
        } else {
            assert!(said.contains("No space left on device"), "{said}");
            assert_eq!(names(&dir.path().join("images")), Vec::<String>::new(), "{size}");
            assert!(names(&dir.path().join("layers")).iter().all(|name| name.len() == 64), "{size}");
        }
    }
    assert!(images(dir.path(), &["verify"]).0);
    assert!(Command::new("umount").arg(at).status().unwrap().success());
}

#[test]
fn what_cannot_be_pulled_is_said_in_one_line_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for (reference, said) in
        [("UPPER", "accepted are"), ("127.0.0.1:1/x:1", "check the network"), ("tar:/nowhere", "cannot open /nowhere")]
    {
        let (is_done, text) = images(dir.path(), &["pull", "--name", "x", reference]);
        assert!(!is_done && text.contains(said), "{reference}: {text}");
    }
    let (is_done, text) = images(dir.path(), &["rm", "x"]);
    assert!(!is_done && text.contains("no image is named x"), "{text}");
}
