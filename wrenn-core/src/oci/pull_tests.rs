use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::oci::digest::Digest;
use crate::oci::error::OciError;
use crate::oci::limits::Limits;
use crate::oci::options::{Progress, PullOptions};
use crate::oci::pull::{Made, make_base, prune, resolve, verify};
use crate::oci::source::Source;
use crate::oci::testing::{Archive, Mounted, TestImage, gzip, listing};

/// Makes `NAME.erofs` below a directory.
async fn make(source: &Source, directory: &Path, name: &str) -> Result<(Made, PathBuf), OciError> {
    let base = directory.join(format!("{name}.erofs"));
    let made = make_base(source, &PullOptions::default(), &directory.join("layers"), &base, &mut |_| {}).await?;
    Ok((made, base))
}

fn image() -> TestImage {
    let lower = Archive::new().directory("d").file("d/gone", b"1").file("d/big", &[3; 9000]).symlink("l", "d");
    let middle = Archive::new().file("d/.wh.gone", b"").file("l/through", b"2").link("hard", "d/big");
    let upper = Archive::new().file("top", &[5; 5000]);
    TestImage::new(&[lower.bytes(), middle.bytes(), upper.bytes()])
}

fn layout(image: &TestImage, directory: &Path) -> Source {
    Source::Layout { path: image.layout(directory), tag: None }
}

#[tokio::test]
async fn one_image_is_the_same_from_every_source() {
    let directory = tempfile::tempdir().unwrap();
    let image = image();
    let (made, base) = make(&layout(&image, directory.path()), directory.path(), "layout").await.unwrap();
    assert_eq!((made.digest, made.layers.len(), &*made.config.cmd[0]), (image.digest(), 3, "/run"));
    assert!(made.reference.starts_with("oci:/"));
    let bytes = fs::read(&base).unwrap();
    let archive = directory.path().join("archive.tar");
    let packed =
        Command::new("tar").arg("-C").arg(directory.path().join("layout")).arg("-cf").arg(&archive).arg(".").status();
    assert!(packed.unwrap().success());
    let source = Source::OciArchive { path: archive, tag: Some("tag".to_owned()) };
    assert_eq!(resolve(&source, &PullOptions::default()).await.unwrap(), image.digest());
    let (_, base) = make(&source, directory.path(), "archive").await.unwrap();
    assert!(fs::read(&base).unwrap() == bytes);
    // Without the layers of the first.
    let other = tempfile::tempdir().unwrap();
    let (_, again) = make(&source, other.path(), "again").await.unwrap();
    assert!(fs::read(&again).unwrap() == bytes);
    assert_eq!(
        fs::read_dir(other.path().join("layers"))
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().len() == 64)
            .count(),
        3
    );

    let Some(mounted) = Mounted::new(&base, "one_image_is_the_same_from_every_source") else { return };
    let names: Vec<String> = listing(mounted.path()).into_keys().collect();
    assert_eq!(names, ["", "d", "d/big", "d/through", "hard", "l", "top"]);
    let (tree, listed) = (Source::Directory(mounted.path().to_owned()), listing(mounted.path()));
    let (made, copied) = make(&tree, directory.path(), "directory").await.unwrap();
    assert_eq!(resolve(&tree, &PullOptions::default()).await.unwrap(), made.digest);
    let copied = Mounted::new(&copied, "one_image_is_the_same_from_every_source").unwrap();
    assert_eq!(listing(copied.path()), listed);
}

#[tokio::test]
async fn what_docker_saves_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let (lower, upper) = (Archive::new().file("a", b"1").bytes(), Archive::new().file("b", b"2").bytes());
    let diff_ids = [&lower, &upper].map(|bytes| Digest::of(bytes).to_string());
    let config =
        json!({"os": "linux", "architecture": "amd64", "config": {"User": "u"}, "rootfs": {"diff_ids": diff_ids}})
            .to_string();
    let manifest =
        json!([{"Config": "c.json", "RepoTags": ["x/y:latest"], "Layers": ["1/layer.tar", "2/layer.tar"]}]).to_string();
    let archive = Archive::new()
        .file("1/layer.tar", &lower)
        .file("2/real.tar", &gzip(&upper))
        .symlink("2/layer.tar", "../2/real.tar")
        .file("c.json", config.as_bytes())
        .file("manifest.json", manifest.as_bytes());
    let path = directory.path().join("saved.tar");
    fs::write(&path, archive.bytes()).unwrap();
    for name in [None, Some("x/y"), Some("x/y:latest")] {
        let source = Source::DockerArchive { path: path.clone(), name: name.map(str::to_owned) };
        let (made, _) =
            make(&source, directory.path(), name.unwrap_or("none").replace('/', "_").as_str()).await.unwrap();
        assert_eq!((made.digest, &*made.config.user), (Digest::of(config.as_bytes()).to_string(), "u"));
    }
    let absent = Source::DockerArchive { path, name: Some("z".to_owned()) };
    assert!(matches!(make(&absent, directory.path(), "z").await, Err(OciError::NotFound { .. })));
}

/// What GNU tar packs and unpacks again, with everything that a tree can have.
#[tokio::test]
async fn a_root_file_system_is_what_tar_unpacks() {
    const TEST: &str = "a_root_file_system_is_what_tar_unpacks";
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: {TEST}: devices and owners need root");
    }
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    let script = r"mkdir -p deep/er many && echo hi >deep/f && ln deep/f deep/er/g && ln -s /nowhere dangling &&
        chmod 4755 deep/f && chown 100000:70000 deep && mknod null c 1 3 && mknod disk b 259 300 && mkfifo fifo &&
        truncate -s 3M sparse && printf x | dd of=sparse bs=1 seek=2000000 conv=notrunc status=none &&
        seq 1 20000 >large && touch -d '1960-01-01 00:00:00.5' old && chmod 1777 many &&
        setfattr -n security.capability -v 0x0100000200200a00000000000000000000000000 large &&
        setfattr -n user.odd -v $(printf 'a\nb' | base64 | sed s/^/0s/) large &&
        for i in $(seq 1 300); do echo $i >many/$i-$(printf 'n%.0s' $(seq 1 120)); done";
    fs::create_dir(&tree).unwrap();
    let said = Command::new("sh").args(["-ec", script]).current_dir(&tree).output().unwrap();
    if !said.status.success() {
        return println!("skipped: {TEST}: {}", String::from_utf8_lossy(&said.stderr));
    }
    symlink("x".repeat(3000), tree.join("long")).unwrap();
    for (number, options) in [&["--format=pax", "-z"][..], &["--format=pax", "--sparse"]].into_iter().enumerate() {
        let (archive, unpacked) =
            (directory.path().join(format!("{number}.tar")), directory.path().join(format!("{number}")));
        fs::create_dir(&unpacked).unwrap();
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(&tree).args(["--xattrs", "--numeric-owner"]).args(options).arg("-cf").arg(&archive).arg(".");
        assert!(pack.status().unwrap().success());
        let mut unpack = Command::new("tar");
        unpack
            .arg("-C")
            .arg(&unpacked)
            .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
            .arg(&archive);
        assert!(unpack.status().unwrap().success());
        let (_, base) = make(&Source::Tar(archive), directory.path(), &number.to_string()).await.unwrap();
        let Some(mounted) = Mounted::new(&base, TEST) else { return };
        let (ours, theirs) = (listing(mounted.path()), listing(&unpacked));
        for (name, expected) in &theirs {
            assert_eq!(ours.get(name), Some(expected), "{name}");
        }
        assert_eq!(ours.len(), theirs.len());
    }
}

#[tokio::test]
async fn what_was_exchanged_is_refused_and_nothing_is_left() {
    let archives = [Archive::new().file("a", b"1").bytes()];
    let check = async |image: &TestImage, change: &dyn Fn(&Path)| {
        let directory = tempfile::tempdir().unwrap();
        let source = layout(image, directory.path());
        change(&directory.path().join("layout"));
        let error = make(&source, directory.path(), "x").await.err().unwrap();
        let left = fs::read_dir(directory.path().join("layers")).unwrap().flatten();
        let left = left.filter(|entry| !entry.file_name().to_string_lossy().starts_with(".lock-")).count();
        assert_eq!(left, 0, "{error}");
        error
    };
    let image = TestImage::new(&archives);
    let exchange = |layout: &Path, old: &[u8], new: &[u8]| {
        fs::write(layout.join("blobs/sha256").join(Digest::of(old).hex()), new).unwrap();
    };
    let other = gzip(&Archive::new().file("a", b"2").bytes());
    let error = check(&image, &|layout| exchange(layout, &image.layers[0], &other)).await;
    assert!(
        matches!(&error, OciError::Digest { expected, .. } if *expected == Digest::of(&image.layers[0]).to_string()),
        "{error}"
    );
    let error = check(&image, &|layout| exchange(layout, &image.manifest, b"{}")).await;
    assert!(matches!(error, OciError::Digest { .. }), "{error}");
    let wrong = TestImage::with(&archives, "amd64", |_| vec![Digest::of(b"other").to_string()]);
    let error = check(&wrong, &|_| {}).await;
    assert!(matches!(&error, OciError::Digest { what, .. } if what.starts_with("the archive in")), "{error}");
    let error = check(&TestImage::with(&archives, "riscv64", |ids| ids), &|_| {}).await;
    assert!(error.to_string().contains("linux/riscv64"), "{error}");
}

#[tokio::test]
async fn kept_layers_are_shared_counted_checked_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let (image, layers) = (image(), directory.path().join("layers"));
    let source = layout(&image, directory.path());
    // What a pull that was killed leaves.
    fs::create_dir_all(layers.join(".tmp-killed")).unwrap();
    fs::write(layers.join(".tmp-killed/data"), "half").unwrap();
    let (made, _) = make(&source, directory.path(), "first").await.unwrap();
    assert!(!layers.join(".tmp-killed").exists());
    let mut kept = 0;
    let mut progress = |progress: Progress| kept += u32::from(matches!(progress, Progress::Kept { .. }));
    let base = directory.path().join("second");
    make_base(&source, &PullOptions::default(), &layers, &base, &mut progress).await.unwrap();
    assert_eq!(kept, 3);
    let few = PullOptions { limits: Limits { unpacked_bytes: 5000, ..Limits::default() }, ..PullOptions::default() };
    let error = make_base(&source, &few, &layers, &directory.path().join("third"), &mut |_| {}).await.unwrap_err();
    assert!(matches!(error, OciError::Limit { .. }), "what is kept counts, too: {error}");

    assert!(verify(&layers).await.unwrap().1.is_empty());
    let damaged = &made.layers[0].digest;
    let data = layers.join(damaged.strip_prefix("sha256:").unwrap()).join("data");
    let mut bytes = fs::read(&data).unwrap();
    bytes[100] ^= 1;
    fs::write(&data, bytes).unwrap();
    assert_eq!(verify(&layers).await.unwrap().1, std::slice::from_ref(damaged));
    let keep: BTreeSet<String> = made.layers[1..].iter().map(|layer| layer.digest.clone()).collect();
    assert_eq!(prune(&layers, keep).await.unwrap(), std::slice::from_ref(damaged));
    assert!(verify(&layers).await.unwrap().1.is_empty());
    make(&source, directory.path(), "fourth").await.unwrap();
    assert!(
        fs::read(directory.path().join("first.erofs")).unwrap()
            == fs::read(directory.path().join("fourth.erofs")).unwrap()
    );
}

#[tokio::test]
async fn a_layer_whose_index_is_damaged_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let source = layout(&image(), directory.path());
    let (made, _) = make(&source, directory.path(), "first").await.unwrap();
    let hex = made.layers[2].digest.strip_prefix("sha256:").unwrap();
    fs::write(directory.path().join("layers").join(hex).join("index"), b"junk").unwrap();
    make(&source, directory.path(), "second").await.unwrap();
    assert!(
        fs::read(directory.path().join("first.erofs")).unwrap()
            == fs::read(directory.path().join("second.erofs")).unwrap()
    );
}

#[tokio::test]
async fn a_layer_may_be_in_an_image_twice() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (Archive::new().file("a", b"1").bytes(), Archive::new().link("b", "a").file("a", b"2").bytes());
    // Every third is compressed in the same way, so that the first and the last are one.
    let image = TestImage::new(&[one.clone(), two, Archive::new().directory("d").bytes(), one]);
    let (made, base) = make(&layout(&image, directory.path()), directory.path(), "twice").await.unwrap();
    assert_eq!((made.layers.len(), &made.layers[0]), (4, &made.layers[3]));
    let Some(mounted) = Mounted::new(&base, "a_layer_may_be_in_an_image_twice") else { return };
    let read = |name: &str| fs::read_to_string(mounted.path().join(name)).unwrap();
    assert_eq!((read("a"), read("b")), ("1".to_owned(), "1".to_owned()));
}
