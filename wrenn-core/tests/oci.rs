//! OCI images become sandboxes, whatever they are made of: with a libc or none, with a shell or none.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use serde_json::json;
use tar::EntryType;
use tempfile::TempDir;
use wrenn_core::image::{Image, ImageError, Step};
use wrenn_core::{Host, Sandbox, Template};

use common::{run, skip};
use registry::{Layer, Layout, Registry, SESAME, busybox, busybox_root, data_dir, hex};

async fn host(dir: &TempDir) -> Host {
    Host::builder().data_dir(dir.path()).open().await.unwrap()
}

/// The base of the image `base`, as a layer.
fn debian_root() -> Vec<u8> {
    let image = Image::open(&wrenn_core::default_data_dir(), "base").unwrap();
    let place = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| assert!(Command::new("mount").args(args).status().unwrap().success());
    let (base, at) = (image.base(), place.path().to_str().unwrap().to_owned());
    mount(&["-o", "loop,ro", base.to_str().unwrap(), &at]);
    let tar = Command::new("tar")
        .args(["--numeric-owner", "--xattrs", "--exclude=./lost+found", "-C", &at, "-cf", "-", "."])
        .stdout(Stdio::piped())
        .output();
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    let tar = tar.unwrap();
    assert!(tar.status.success());
    tar.stdout
}

/// What every sandbox does, whatever its image is. `words` print `hello`.
async fn lives(host: &Host, image: &str, words: &[&str]) {
    let said = async |sandbox: &Sandbox| {
        let output = sandbox.command(words[0]).args(&words[1..]).output().await.unwrap();
        assert!(output.status.success(), "{image}: {} {}", output.status, output.stderr_utf8());
        output.stdout_utf8()
    };
    let sandbox = Sandbox::create(host, image).await.unwrap();
    assert_eq!(said(&sandbox).await, "hello\n", "{image}");
    sandbox.files().write("/tmp/kept", "kept").await.unwrap();
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(said(&sandbox).await, "hello\n", "{image}");
    let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
    assert_eq!(said(&child).await, "hello\n", "{image}");
    assert_eq!(child.files().read("/tmp/kept").await.unwrap(), b"kept"[..], "{image}");
    child.kill().await.unwrap();
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_a_shell_and_no_bash_has_what_its_configuration_says() {
    vm_test_or_return!();
    let Some(busybox) = busybox() else {
        return skip("an_image_with_a_shell_and_no_bash…", &"there is no static busybox: run `cargo xtask setup`");
    };
    let layout = Layout::new().layer(&busybox_root(&busybox).done());
    let reference = layout.config(&json!({
        "Env": ["PATH=/bin", "MODE=a=b"], "User": "app", "WorkingDir": "/srv", "Entrypoint": ["/bin/echo"],
        "Cmd": ["hi"], "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT", "Labels": {"a": "b"},
    }));
    let dir = data_dir();
    let host = host(&dir).await;
    let image = host.ensure_image(Image::builder("small").oci(&reference)).await.unwrap();
    assert_eq!(image.labels().collect::<Vec<_>>(), [("a", "b")]);
    let defaults = image.defaults();
    assert_eq!((defaults.entrypoint.len(), defaults.cmd.len()), (1, 1));
    assert_eq!(
        (&*defaults.exposed_ports, defaults.stop_signal.as_deref()),
        (&["80/tcp".to_owned()][..], Some("SIGQUIT"))
    );
    let sandbox = Sandbox::builder(&host, "small").env("OWN", "1").create().await.unwrap();
    let line = "id; pwd; echo $MODE $OWN $PATH";
    let expected = "uid=101(app) gid=102(app) groups=102(app),103(more)\n/srv\na=b 1 /bin";
    assert_eq!(run(&sandbox, line).await, expected);
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, line).await, expected, "after a pause");
    let template = sandbox.snapshot("of-small").await.unwrap();
    assert_eq!(template.defaults().unwrap().user.as_deref(), Some("app"));
    let copy = Sandbox::create(&host, "of-small").await.unwrap();
    assert_eq!(run(&copy, "id -un; pwd; echo $MODE,$OWN").await, "app\n/srv\na=b,", "what the create adds is its own");
    // A login shell at a terminal is the image's, too.
    let size = wrenn_core::PtySize { columns: 80, rows: 24 };
    let mut shell = sandbox.pty(size).spawn().await.unwrap();
    shell.write_stdin("echo from $0; exit 7\n").await.unwrap();
    assert_eq!(shell.wait().await.unwrap().code(), Some(7));
    lives(&host, "small", &["echo", "hello"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_without_a_shell_and_without_anything_run_their_one_program() {
    vm_test_or_return!();
    let Some(busybox) = busybox() else {
        return skip("images_without_a_shell…", &"there is no static busybox: run `cargo xtask setup`");
    };
    let dir = data_dir();
    let host = host(&dir).await;
    // As distroless images are: users and certificates, and a program.
    let files = Layer::new()
        .directory("etc/", 0o755)
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0::/root:/sbin/nologin\nnonroot:x:65532:65532::/home/nonroot:/sbin/nologin\n",
        )
        .file("etc/ssl/certs/ca-certificates.crt", 0o644, b"")
        .file("usr/lib/os-release", 0o644, b"ID=debian\nVERSION_ID=\"12\"\n")
        .link("etc/os-release", "../usr/lib/os-release", EntryType::Symlink)
        .file("var/lib/dpkg/status.d/tzdata", 0o644, b"Package: tzdata\nVersion: 2024a-0+deb12u1\nArchitecture: all\n")
        .file("var/lib/dpkg/status.d/tzdata.md5sums", 0o644, b"0123  usr/share/zoneinfo/UTC\n");
    let program = Layer::new().file("app/echo", 0o755, &busybox);
    let layout = Layout::new().layer(&files.done()).layer(&program.done());
    let reference = layout.config(&json!({"User": "65532", "Env": ["PATH=/app"], "Entrypoint": ["/app/echo"]}));
    let image = host.ensure_image(Image::builder("distroless").oci(&reference)).await.unwrap();
    assert_eq!(image.packages().map(ToString::to_string).collect::<Vec<_>>(), ["tzdata 2024a-0+deb12u1"]);
    let document: serde_json::Value = serde_json::from_str(&image.spdx()).unwrap();
    let packages = document["packages"].as_array().unwrap();
    let digest = image.reference_digest().unwrap().trim_start_matches("sha256:");
    assert_eq!(packages[0]["checksums"][0]["checksumValue"], digest);
    let url = "pkg:deb/debian/tzdata@2024a-0%2Bdeb12u1?arch=all&distro=debian-12";
    assert!(packages.iter().any(|package| package["externalRefs"][0]["referenceLocator"] == url), "{document:#}");
    lives(&host, "distroless", &["echo", "hello"]).await;
    let sandbox = Sandbox::create(&host, "distroless").await.unwrap();
    let refused = sandbox.exec("true").await.unwrap_err();
    assert!(wrenn_core_chain(&refused).contains("there is no shell in this image"), "{refused:?}");
    sandbox.kill().await.unwrap();

    let layout = Layout::new().layer(&Layer::new().file("echo", 0o755, &busybox).done());
    let reference = layout.config(&json!({"Entrypoint": ["/echo"]}));
    host.ensure_image(Image::builder("scratch").oci(&reference)).await.unwrap();
    lives(&host, "scratch", &["/echo", "hello"]).await;
}

fn wrenn_core_chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Prints of each path below `/odd` what it is, as the host is told too.
const WALK: &str = r#"
import hashlib, os, stat, sys
for top, directories, files in os.walk('/odd'):
    directories.sort()
    for name in sorted(directories + files):
        path = os.path.join(top, name)
        it = os.lstat(path)
        more = ''
        if stat.S_ISREG(it.st_mode):
            more = f'{it.st_size} ' + hashlib.sha256(open(path, 'rb').read()).hexdigest()[:12]
        elif stat.S_ISLNK(it.st_mode):
            more = os.readlink(path)
        elif stat.S_ISCHR(it.st_mode) or stat.S_ISBLK(it.st_mode):
            more = f'{os.major(it.st_rdev)},{os.minor(it.st_rdev)}'
        links = it.st_nlink if stat.S_ISREG(it.st_mode) else 1
        names = sorted(name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith('trusted.overlay'))
        more += ''.join(f' {n}={os.getxattr(path, n, follow_symlinks=False).hex()}' for n in names)
        sys.stdout.buffer.write(f'{path} {oct(it.st_mode)} {it.st_uid}:{it.st_gid} {int(it.st_mtime)} {links} {more}\n'.encode(errors='surrogateescape'))
"#;

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a list of everything odd, and what becomes of it")]
async fn what_is_in_the_layers_is_in_the_guest_file_by_file() {
    vm_test_or_return!();
    let long = format!("odd/{}/{}", "d".repeat(200), "f".repeat(255));
    let owned = |kind, mode, uid, gid| {
        let mut header = Layer::header(kind, mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header
    };
    let device = |kind, major, minor| {
        let mut header = Layer::header(kind, 0o600);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header
    };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let lower = Layer::new()
        .directory("odd/", 0o755)
        .file("odd/gone", 0o644, b"x")
        .directory("odd/opaque/", 0o755)
        .file("odd/opaque/below", 0o644, b"x")
        .file("odd/replaced", 0o644, b"old")
        .directory("odd/real/", 0o755)
        .link("odd/alias", "real", EntryType::Symlink)
        .file("odd/first", 0o640, b"linked");
    let big: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let upper = Layer::new()
        .file("odd/.wh.gone", 0o644, b"")
        .file("odd/opaque/.wh..wh..opq", 0o644, b"")
        .file("odd/opaque/above", 0o644, b"y")
        .file("odd/replaced", 0o755, b"new")
        // Through a link of the lower layer.
        .file("odd/alias/through", 0o644, b"z")
        .link("odd/second", "odd/first", EntryType::Link)
        .file("odd/set-user-id", 0o4755, b"#!/bin/sh\n")
        .directory("odd/sticky/", 0o1777)
        .entry("odd/owned", owned(EntryType::Regular, 0o600, 123_456, 65_534))
        .entry("odd/null", device(EntryType::Char, 1, 3))
        .entry("odd/disk", device(EntryType::Block, 259, 70_000))
        .entry("odd/pipe", Layer::header(EntryType::Fifo, 0o622))
        .link("odd/dangling", "/nowhere/at/all", EntryType::Symlink)
        .file("odd/empty", 0o644, b"")
        .file("odd/big", 0o644, &big)
        .file("odd/zeroes", 0o644, &vec![0; 1 << 20])
        .file(&long, 0o644, b"long")
        .with(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.note", b"a\nb")])
        .file("odd/capable", 0o755, b"c")
        .file("odd/caf\u{e9} \u{1f980}", 0o644, b"name");
    let layout = Layout::new().layer(&debian_root()).layer(&lower.done()).layer(&upper.done());
    let reference = layout.config(&json!({}));
    let dir = data_dir();
    let host = host(&dir).await;
    host.ensure_image(Image::builder("odd").oci(&reference)).await.unwrap();
    let sandbox = Sandbox::create(&host, "odd").await.unwrap();
    let output = sandbox.command("python3").args(["-c", WALK]).output().await.unwrap();
    let said = output.stdout_utf8();
    assert!(output.status.success(), "{}", output.stderr_utf8());
    let at = 1_700_000_000;
    let file = |content: &[u8]| format!("{} {}", content.len(), &hex(content)[..12]);
    let plain = |mode: &str, content: &[u8]| format!("{mode} 0:0 {at} 1 {}", file(content));
    let mut expected: BTreeMap<String, String> = [
        ("alias", format!("0o120777 0:0 {at} 1 real")),
        ("big", plain("0o100644", &big)),
        (
            "capable",
            format!(
                "{} security.capability={} user.note=610a62",
                plain("0o100755", b"c"),
                capability.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            ),
        ),
        ("caf\u{e9} \u{1f980}", plain("0o100644", b"name")),
        ("dangling", format!("0o120777 0:0 {at} 1 /nowhere/at/all")),
        ("disk", format!("0o60600 0:0 {at} 1 259,70000")),
        ("empty", plain("0o100644", b"")),
        ("first", format!("0o100640 0:0 {at} 2 {}", file(b"linked"))),
        ("null", format!("0o20600 0:0 {at} 1 1,3")),
        ("opaque", format!("0o40755 0:0 {at} 1 ")),
        ("opaque/above", plain("0o100644", b"y")),
        ("owned", format!("0o100600 123456:65534 {at} 1 {}", file(b""))),
        ("pipe", format!("0o10622 0:0 {at} 1 ")),
        ("real", format!("0o40755 0:0 {at} 1 ")),
        ("real/through", plain("0o100644", b"z")),
        ("replaced", plain("0o100755", b"new")),
        ("second", format!("0o100640 0:0 {at} 2 {}", file(b"linked"))),
        ("set-user-id", plain("0o104755", b"#!/bin/sh\n")),
        ("sticky", format!("0o41777 0:0 {at} 1 ")),
        ("zeroes", plain("0o100644", &vec![0; 1 << 20])),
    ]
    .into_iter()
    .map(|(name, what)| (format!("/odd/{name}"), what))
    .collect();
    expected.insert(format!("/{long}"), plain("0o100644", b"long"));
    for line in said.lines() {
        let known = expected.iter().find(|(path, what)| line == format!("{path} {what}")).map(|(path, _)| path.clone());
        match known {
            Some(path) => drop(expected.remove(&path)),
            // A directory that no layer names has no time of its own.
            None => assert!(line.starts_with(&format!("/odd/{} 0o40755 0:0", "d".repeat(200))), "{line}"),
        }
    }
    assert!(expected.is_empty(), "not there: {expected:#?}\nof\n{said}");
    lives(&host, "odd", &["/bin/bash", "-c", "echo hello"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_costs_the_layers_that_are_new() {
    vm_test_or_return!();
    let (Some(busybox), Some(registry)) = (busybox(), Registry::start(None)) else {
        return skip("a_tag_that_moves…", &"there is no docker-registry or no busybox: run `cargo xtask setup`");
    };
    let root = busybox_root(&busybox).done();
    let layout = Layout::new().layer(&root).layer(&Layer::new().file("version", 0o644, b"one").done());
    layout.config(&json!({"Env": ["PATH=/bin"]}));
    registry.push(&layout, "acme/app", None);
    let reference = format!("{}/acme/app:1", registry.address);
    let dir = data_dir();
    let host = host(&dir).await;
    let image = host.ensure_image(&*reference).await.unwrap();
    assert_eq!(image.reference(), Some(&*reference));
    let name = image.name().to_owned();
    let old = Sandbox::create(&host, &name).await.unwrap();
    assert_eq!(run(&old, "cat /version").await, "one");
    let paused = old.pause().await.unwrap();
    assert_eq!(paused.id().as_str().len(), 18);
    Template::builder(&name).run("echo built > /built").build(&host, "on-app").await.unwrap();
    let bases = async || {
        let bases = host.template_bases().await.unwrap();
        bases.iter().map(|base| (base.template.to_string(), base.image.clone(), base.is_current)).collect::<Vec<_>>()
    };
    assert_eq!(bases().await, [("on-app".to_owned(), name.clone(), true)]);
    let plan = async || Image::builder(&name).oci(&reference).plan_refresh(dir.path()).await.unwrap().unwrap();
    assert!(!plan().await.changes_base() && plan().await.new_layers.is_empty());

    let layout = Layout::new().layer(&root).layer(&Layer::new().file("version", 0o644, b"two").done());
    layout.config(&json!({"Env": ["PATH=/bin"]}));
    registry.push(&layout, "acme/app", None);
    let same = host.ensure_image(&*reference).await.unwrap();
    assert_eq!(same.digest(), image.digest(), "nobody is asked without a reason");
    let refresh = plan().await;
    assert!(refresh.changes_base() && refresh.current_digest.as_deref() == image.reference_digest(), "{refresh:?}");
    let [layer] = &*refresh.new_layers else { panic!("{refresh:?}") };
    assert!(layer.archive_bytes > 0 && refresh == plan().await, "nothing was changed by asking");
    let steps = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = std::sync::Arc::clone(&steps);
    // A kernel of today is not asked for, as `refresh` would.
    fs::remove_dir_all(dir.path().join("images").join(&name)).ok();
    let builder = Image::builder(&name).oci(&reference);
    let new = host.ensure_image(builder).on_step(move |step| told.lock().unwrap().push(step.clone())).await.unwrap();
    assert_ne!(new.base_digest(), image.base_digest());
    assert_eq!(new.reference_digest(), Some(&*refresh.newest_digest));
    assert_eq!(bases().await, [("on-app".to_owned(), name.clone(), false)]);
    let layers = |wanted: bool| {
        steps.lock().unwrap().iter().filter(|step| matches!(step, Step::Layer { kept, .. } if *kept == wanted)).count()
    };
    assert_eq!((layers(true), layers(false)), (1, 1));
    let sandbox = Sandbox::create(&host, &name).await.unwrap();
    assert_eq!(run(&sandbox, "cat /version").await, "two");
    sandbox.kill().await.unwrap();
    drop(paused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_to_know_who_asks_is_told() {
    vm_test_or_return!();
    let (Some(busybox), Some(registry)) = (busybox(), Registry::start(Some(SESAME))) else {
        return skip("a_registry_that_wants…", &"there is no docker-registry or no busybox: run `cargo xtask setup`");
    };
    let layout = Layout::new().layer(&busybox_root(&busybox).done());
    layout.config(&json!({"Env": ["PATH=/bin"]}));
    registry.push(&layout, "private/app", Some("ada:sesame"));
    let reference = format!("{}/private/app:1", registry.address);
    let dir = data_dir();
    let builder = || Image::builder("private").oci(&reference);
    let build = async |builder: wrenn_core::image::ImageBuilder| builder.build(dir.path(), |_| {}).await;
    for wrong in [builder(), builder().registry_login("ada", "wrong"), builder().registry_login("eve", "sesame")] {
        match build(wrong).await {
            Err(ImageError::Oci(error)) => {
                assert!(error.is_denied() && !error.is_retryable(), "{error}");
                assert!(!error.to_string().contains("sesame"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    let image = build(builder().registry_login("ada", "sesame")).await.unwrap();
    image.verify().unwrap();
    let text = fs::read_to_string(dir.path().join("images/private/image.json")).unwrap();
    // A digest may have an `ada` in it.
    let is_named = ["\"ada", "ada\"", "ada:"].iter().any(|name| text.contains(name));
    assert!(!text.contains("sesame") && !is_named, "{text}");
}

#[tokio::test]
async fn what_cannot_be_pulled_says_why_and_leaves_nothing() {
    let dir = data_dir();
    let broken = tempfile::tempdir().unwrap();
    fs::write(broken.path().join("not-a.tar"), "rubbish").unwrap();
    let traversal = broken.path().join("traversal.tar");
    let mut header = Layer::header(EntryType::Regular, 0o644);
    header.as_mut_bytes()[..9].copy_from_slice(b"a/../../b");
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(2048, 0);
    fs::write(&traversal, bytes).unwrap();
    for (reference, said) in [
        ("docker.io/UPPER", "names no image"),
        ("oci:/nowhere", "cannot"),
        (&*format!("tar:{}/not-a.tar", broken.path().display()), "cannot be understood"),
        (&*format!("tar:{}", traversal.display()), "`..` is in its name"),
    ] {
        let error = Image::builder("bad").oci(reference).build(dir.path(), |_| {}).await.unwrap_err();
        assert!(error.to_string().contains(said), "{reference}: {error}");
        assert!(!error.is_retryable(), "{reference}");
    }
    let packages = Image::builder("bad").oci("python:3.12").package("jq").build(dir.path(), |_| {}).await;
    assert!(matches!(packages, Err(ImageError::Setting { setting: "package", .. })));
    let left: Vec<_> = fs::read_dir(dir.path().join("images")).into_iter().flatten().flatten().collect();
    assert!(left.iter().all(|entry| entry.file_name().to_string_lossy().starts_with(".lock-")), "{left:?}");
}

#[tokio::test]
async fn a_root_file_system_is_the_same_base_from_a_tar_and_another_time() {
    if !nix::unistd::Uid::effective().is_root() {
        return skip("a_root_file_system_is_the_same_base…", &"only root makes devices");
    }
    let (dir, root) = (data_dir(), tempfile::tempdir().unwrap());
    let kernel = wrenn_core::default_data_dir().join("kernels/bookworm/kernel.json");
    if !kernel.is_file() {
        return skip("a_root_file_system_is_the_same_base…", &"there is no kernel: run `cargo xtask setup`");
    }
    for number in 0..500 {
        fs::write(root.path().join(format!("file-{number}")), vec![u8::try_from(number % 251).unwrap(); number * 37])
            .unwrap();
    }
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let reference = format!("dir:{}", root.path().display());
    let one = Image::builder("one").oci(&reference).build(dir.path(), |_| {}).await.unwrap();
    let two = Image::builder("two").oci(&reference).build(dir.path(), |_| {}).await.unwrap();
    assert_eq!((one.base_digest(), one.reference_digest()), (two.base_digest(), two.reference_digest()));
    one.verify().unwrap();
}
