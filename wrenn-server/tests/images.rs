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
use registry::{Layer, Layout, Registry, SESAME};

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
fn a_registry_is_trusted_by_the_hosts_authorities_and_asked_as_whom_a_helper_names() {
    let test = "a_registry_is_trusted_by_the_hosts_authorities_and_asked_as_whom_a_helper_names";
    if !can_run(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    share_kernels(dir.path());
    let at = |name: &str| dir.path().join(name);
    let keys = || rcgen::KeyPair::generate().unwrap();
    // An address of this machine that counts as another's: one of its own is asked without TLS.
    let params = |name: &str| rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let mut authority = params("authority");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let (authority, own) = (rcgen::CertifiedIssuer::self_signed(authority, keys()).unwrap(), keys());
    fs::write(at("ca.pem"), authority.pem()).unwrap();
    fs::write(at("certificate.pem"), params("0.0.0.0").signed_by(&own, &authority).unwrap().pem()).unwrap();
    fs::write(at("key.pem"), own.serialize_pem()).unwrap();
    let certificate = Some((&*at("certificate.pem"), &*at("key.pem")));
    let Some(registry) = Registry::start_at("0.0.0.0", Some(SESAME), certificate) else {
        return writeln!(std::io::stderr(), "skipped: {test}: no docker-registry: run `cargo xtask setup`")
            .expect("standard error is open");
    };
    let (layout, _) = layout(1, 1);
    registry.push(&layout, "me/image", Some("ada:sesame"));
    let helper = at("docker-credential-test");
    let script = "#!/bin/sh\n[ \"$1\" = get ] || exit 2\nread -r host\n\
        case $host in\n0.0.0.0:*) echo \"{\\\"ServerURL\\\":\\\"$host\\\",\\\"Username\\\":\\\"ada\\\",\\\"Secret\\\":\\\"$SECRET\\\"}\";;\n\
        *) echo credentials not found in native keychain; exit 1;;\nesac\n";
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let reference = format!("{}/me/image:1", registry.address);
    let pull = |authorities: &str, secret: &str, config: serde_json::Value| {
        fs::write(at("config.json"), config.to_string()).unwrap();
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let mut command = wrenn_server(dir.path(), &["images", "pull", "--name", "mine", &reference]);
        command.env("PATH", path).env("DOCKER_CONFIG", dir.path()).env("SECRET", secret).env_remove("SSL_CERT_DIR");
        let output = command.env("SSL_CERT_FILE", at(authorities)).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let host = registry.address.as_str();
    let (is_done, said) = pull("ca.pem", "open", json!({"credHelpers": {host: "test"}}));
    assert!(!is_done && said.contains("docker login"), "{said}");
    let (is_done, said) = pull("ca.pem", "sesame", json!({"credHelpers": {host: "absent"}}));
    assert!(!is_done && said.contains("docker-credential-absent"), "{said}");
    let (is_done, said) = pull("certificate.pem", "sesame", json!({"credsStore": "test"}));
    assert!(!is_done && said.contains("authority of its certificate"), "{said}");
    for config in [json!({"credHelpers": {host: "test"}}), json!({"credsStore": "test"})] {
        let (is_done, said) = pull("ca.pem", "sesame", config);
        assert!(is_done, "{said}");
        assert!(images(dir.path(), &["rm", "mine"]).0);
    }
}

#[test]
fn a_dry_run_tells_what_debian_has_that_is_newer_and_changes_nothing() {
    let test = "a_dry_run_tells_what_debian_has_that_is_newer_and_changes_nothing";
    let shared = wrenn_core::default_data_dir();
    if !can_run(test) || !shared.join("images/base/image.json").is_file() {
        return;
    }
    // The shared image and kernel, with the records of older ones.
    let dir = tempfile::tempdir().unwrap();
    for (place, record, change) in [
        ("images/base", "image.json", ("\"bash 5", "\"bash 0-5")),
        ("kernels/bookworm", "kernel.json", ("\"package\": \"linux-image-", "\"package\": \"linux-image-0-")),
    ] {
        fs::create_dir_all(dir.path().join(place)).unwrap();
        for entry in fs::read_dir(shared.join(place)).unwrap() {
            let path = entry.unwrap().path();
            let to = dir.path().join(place).join(path.file_name().unwrap());
            if !path.ends_with(record) {
                std::os::unix::fs::symlink(&path, &to).unwrap();
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(change.0), "{text}");
            fs::write(to, text.replace(change.0, change.1)).unwrap();
        }
    }
    let record = || fs::read_to_string(dir.path().join("images/base/image.json")).unwrap();
    let before = record();
    let (is_done, said) = images(dir.path(), &["pull", "--refresh", "--dry-run", "base"]);
    if !is_done && said.contains("apt-get") {
        return writeln!(std::io::stderr(), "skipped: {test}: Debian's archive does not answer: {said}")
            .expect("standard error is open");
    }
    assert!(is_done, "{said}");
    let line = |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{said}"));
    assert!(line("package  bash  0-5").contains(" would be 5"), "{said}");
    assert!(line("kernel   linux-image-0-").contains("would be linux-image-6."), "{said}");
    assert_eq!(record(), before);
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
