use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::oci::cache::Layer;
use crate::oci::convert::convert;
use crate::oci::layer_writer::LayerWriter;
use crate::oci::limits::{Budget, Limits};
use crate::oci::merge::Merge;
use crate::oci::package_list::{PackageList, read};
use crate::oci::testing::Archive;

/// Of layers, the lowest first.
fn list(archives: Vec<Archive>) -> PackageList {
    let layer = |archive: Archive| {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LayerWriter::create(directory.path()).unwrap();
        let budget = Budget::new(Limits::default());
        let converted = convert(&*archive.bytes(), &mut writer, &budget, "the layer").unwrap();
        writer.finish(converted.blob, converted.diff_id, converted.unpacked_bytes).unwrap();
        Arc::new(Layer::open(directory.path(), converted.blob).unwrap().unwrap())
    };
    let layers: Vec<Arc<Layer>> = archives.into_iter().map(layer).collect();
    let mut merge = Merge::new();
    for layer in &layers {
        merge.apply(&layer.entries).unwrap();
    }
    read(&merge, &layers).unwrap()
}

fn texts(list: &PackageList) -> Vec<String> {
    list.packages.iter().map(ToString::to_string).collect()
}

#[test]
fn the_packages_of_the_uppermost_database_are_listed() {
    let long: String = (0..200).map(|number| format!("Package: p{number:03}\nVersion: 1\n\n")).collect();
    let lower = Archive::new()
        .file("etc/os-release", b"ID=debian\nVERSION_ID=\"12\"\n")
        .file("var/lib/dpkg/status", b"Package: before\nVersion: 1\n");
    let list = list(vec![lower, Archive::new().file("var/lib/dpkg/status", long.as_bytes())]);
    let distribution = list.distribution.as_ref().unwrap();
    assert_eq!((&*distribution.id, distribution.version.as_deref()), ("debian", Some("12")));
    assert_eq!((list.packages.len(), &*texts(&list)[199]), (200, "p199 1"));
    assert_eq!(list.unread, [""; 0]);
}

#[test]
fn a_distroless_image_has_a_file_for_each_package() {
    let files = Archive::new()
        .file("var/lib/dpkg/status.d/tzdata", b"Package: tzdata\nVersion: 2024a\n")
        .file("var/lib/dpkg/status.d/tzdata.md5sums", b"0123  usr/share\n")
        .file("var/lib/dpkg/status.d/base", b"Package: base-files\nVersion: 12\n");
    assert_eq!(texts(&list(vec![files])), ["base-files 12", "tzdata 2024a"]);
}

#[test]
fn a_directory_that_is_a_link_to_another_counts_once() {
    let apk = Archive::new()
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .file("usr/lib/apk/db/installed", b"P:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\n");
    let list = list(vec![apk]);
    assert_eq!(texts(&list), ["musl 1.2.5-r0"]);
    assert_eq!(list.packages[0].license.as_deref(), Some("MIT"));
}

#[test]
fn what_is_not_read_is_told() {
    let rpm = Archive::new().file("usr/lib/sysimage/rpm/rpmdb.sqlite", b"SQLite").symlink("var/lib/rpm", "nowhere");
    let [unread] = &*list(vec![rpm]).unread else { panic!("one") };
    assert!(unread.starts_with("the RPM database /usr/lib/sysimage/rpm/rpmdb.sqlite is not read whole"), "{unread}");
    let open = Archive::new().file("var/lib/rpm/rpmdb.sqlite", b"x").file("var/lib/rpm/rpmdb.sqlite-wal", b"x");
    assert!(list(vec![open]).unread[0].contains("has a log beside it"));
    let old = Archive::new().file("var/lib/rpm/Packages", b"x");
    assert_eq!(list(vec![old]).unread, ["the RPM database /var/lib/rpm/Packages is not read"]);
    let odd = Archive::new()
        .file("lib/apk/db/installed", b"P:a\n\nP:b\nV:1\n")
        .symlink("var/lib/dpkg/status", "status")
        .directory("etc/os-release");
    let list = list(vec![odd]);
    assert_eq!(texts(&list), ["b 1"]);
    assert_eq!(list.unread, ["/lib/apk/db/installed has 1 entries that name no package and version"]);
    assert_eq!(self::list(vec![Archive::new().file("app", b"")]), PackageList::default());
}

#[test]
fn a_database_that_is_too_much_is_not_taken_whole() {
    let large = vec![b'\n'; (128 << 20) + 1];
    let told = list(vec![Archive::new().file("var/lib/dpkg/status", &large)]);
    assert_eq!(told.unread, ["/var/lib/dpkg/status is not read: it has 134217729 bytes"]);
    let many: String = (0..10_001).map(|number| format!("P:p{number}\nV:1\n\n")).collect();
    let long: String = (0..1_100).map(|number| format!("P:p{number}\nV:1\nL:{}\n\n", "x".repeat(1000))).collect();
    for (text, count) in [(many, 10_000), (long, 1_043)] {
        let told = list(vec![Archive::new().file("lib/apk/db/installed", text.as_bytes())]);
        assert_eq!(told.packages.len(), count);
        assert_eq!(told.unread, ["/lib/apk/db/installed names more packages than are taken"]);
    }
}

/// Where `cargo xtask setup` puts Debian's `rpm` for the tests.
fn rpm_program(name: &str) -> Command {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-tools/usr");
    let mut command = Command::new(tools.join("bin").join(name));
    command.env("LD_LIBRARY_PATH", tools.join("lib/x86_64-linux-gnu")).env("RPM_CONFIGDIR", tools.join("lib/rpm"));
    command
}

#[test]
fn the_packages_that_rpm_itself_has_installed_are_listed() {
    if let Err(error) = rpm_program("rpmbuild").arg("--version").output() {
        return println!("skipped: the_packages_that_rpm_itself_has_installed_are_listed: rpmbuild: {error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    // One of them has so many files that its header is longer than many pages.
    for (name, epoch, files) in [("plain", "", 0), ("large", "Epoch: 2\n", 3000)] {
        let make = if files == 0 {
            String::new()
        } else {
            format!("for n in $(seq {files}); do touch %{{buildroot}}/file-$n; done\n")
        };
        let listed = if files == 0 { "" } else { "/*\n" };
        let spec = format!(
            "Name: {name}\nVersion: 1.2\nRelease: 3.fc40\n{epoch}Summary: x\nLicense: MIT\nBuildArch: noarch\n%description\nx\n\
             %install\nmkdir -p %{{buildroot}}\n{make}%files\n{listed}"
        );
        fs::write(at("spec"), spec).unwrap();
        let top = format!("_topdir {}", at("build").display());
        let defined = ["--define", &top, "--define", "__spec_install_post %{nil}", "-bb"];
        run(rpm_program("rpmbuild").args(defined).arg(at("spec")));
        let package = at("build/RPMS/noarch").join(format!("{name}-1.2-3.fc40.noarch.rpm"));
        let to = ["--define", "_db_backend sqlite", "--justdb", "--nodeps", "--ignorearch", "--ignoreos", "--dbpath"];
        run(rpm_program("rpm").args(to).arg(at("db")).arg("-i").arg(package));
    }
    let database = fs::read(at("db/rpmdb.sqlite")).unwrap();
    let fedora = Archive::new()
        .file("etc/os-release", b"ID=fedora\nVERSION_ID=40\n")
        .directory("var/lib")
        .symlink("var/lib/rpm", "../../usr/lib/sysimage/rpm")
        .file("usr/lib/sysimage/rpm/rpmdb.sqlite", &database)
        .file("usr/lib/sysimage/rpm/rpmdb.sqlite-wal", b"");
    let list = list(vec![fedora]);
    assert_eq!(
        (texts(&list), list.unread),
        (vec!["large 2:1.2-3.fc40".to_owned(), "plain 1.2-3.fc40".to_owned()], vec![])
    );
    let plain = &list.packages[1];
    assert_eq!((plain.architecture.as_deref(), plain.license.as_deref()), (Some("noarch"), Some("MIT")));
}
