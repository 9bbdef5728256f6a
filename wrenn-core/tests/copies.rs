//! Copies of a build need nothing of the guest, and keep what a file is.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::json;
use wrenn_core::image::Image;
use wrenn_core::{CopyStep, Host, Sandbox, Template};

use common::{run, skip};
use registry::{Layer, Layout, busybox};

/// What a guest with Python says of the files below `/srv`.
const ATTRIBUTES: &str = r"
import os
for path in ['/srv', '/srv/tool', '/srv/again', '/srv/link']:
    it = os.lstat(path)
    names = sorted(n for n in os.listxattr(path, follow_symlinks=False) if n == 'security.capability' or n.startswith('user.'))
    values = [f'{n}={os.getxattr(path, n, follow_symlinks=False).hex()}' for n in names]
    print(path, oct(it.st_mode), f'{it.st_uid}:{it.st_gid}', int(it.st_mtime), it.st_nlink if path != '/srv' else '', *values)
";

/// A data directory with the images `base` and `bare`, which has a program, and no shell and no `tar`. `None` where there is no
/// such program, which is printed.
async fn bare(test: &str) -> Option<(tempfile::TempDir, Host)> {
    let Some(busybox) = busybox() else {
        skip(test, &"there is no static busybox: run `cargo xtask setup`");
        return None;
    };
    let layout = Layout::new().layer(&Layer::new().file("echo", 0o755, &busybox).done());
    let reference = layout.config(&json!({}));
    let dir = tempfile::Builder::new().prefix("wrenn-test-").tempdir().unwrap();
    std::os::unix::fs::symlink(wrenn_core::default_data_dir().join("kernels"), dir.path().join("kernels")).unwrap();
    let shared = wrenn_core::default_data_dir().join("images/base");
    fs::create_dir(dir.path().join("images")).unwrap();
    let copied =
        Command::new("cp").args(["-r", "--sparse=always"]).arg(shared).arg(dir.path().join("images/base")).status();
    assert!(copied.unwrap().success());
    let host = Host::builder().data_dir(dir.path()).open().await.unwrap();
    host.ensure_image(Image::builder("bare").oci(&reference)).await.unwrap();
    Some((dir, host))
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_unpacked_into_an_image_that_has_no_tar() {
    vm_test_or_return!();
    let Some((_dir, host)) = bare("archives_are_unpacked_into…").await else { return };
    let files = tempfile::tempdir().unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o4750);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(86_400);
    header.set_size(4);
    archive.append_data(&mut header, "bin/tool", &b"tool"[..]).unwrap();
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Symlink);
    archive.append_link(&mut header, "link", "bin/tool").unwrap();
    header.set_entry_type(tar::EntryType::Link);
    archive.append_link(&mut header, "again", "bin/tool").unwrap();
    let plain = archive.into_inner().unwrap();
    let (mut bzip2, mut xz) = (Vec::new(), Vec::new());
    bzip2::read::BzEncoder::new(plain.as_slice(), bzip2::Compression::fast()).read_to_end(&mut bzip2).unwrap();
    liblzma::read::XzEncoder::new(plain.as_slice(), 1).read_to_end(&mut xz).unwrap();
    let mut dockerfile = "FROM bare\n".to_owned();
    let kinds =
        [("tar", plain.clone()), ("tbz", bzip2), ("txz", xz), ("zst", zstd::encode_all(&plain[..], 1).unwrap())];
    for (kind, bytes) in &kinds {
        fs::write(files.path().join(kind), bytes).unwrap();
        dockerfile += &format!("ADD {kind} /srv/{kind}\n");
    }
    dockerfile += "ADD --chown=5:6 tar /srv/own\nCOPY tar /srv/copied\n";
    Template::from_dockerfile_text(&dockerfile, files.path()).unwrap().build(&host, "added").await.unwrap();
    let sandbox = Sandbox::create(&host, "added").await.unwrap();
    for (directory, owner) in [("tar", 7), ("tbz", 7), ("txz", 7), ("zst", 7), ("own", 5)] {
        for name in ["bin/tool", "again"] {
            let path = format!("/srv/{directory}/{name}");
            let tool = sandbox.files().as_user("root").stat(&path).await.unwrap();
            assert_eq!((tool.mode, tool.owner.as_str()), (0o750, owner.to_string().as_str()), "{path}");
            assert_eq!(tool.modified, Some(std::time::UNIX_EPOCH + DAY), "{path}");
        }
        let link = sandbox.files().as_user("root").stat(format!("/srv/{directory}/link")).await.unwrap();
        assert_eq!(link.symlink_target, Some(format!("/srv/{directory}/bin/tool")));
    }
    assert_eq!(sandbox.files().as_user("root").read("/srv/copied").await.unwrap(), plain);
    sandbox.kill().await.unwrap();

    fs::write(files.path().join("evil"), archive_with_name("../../evil")).unwrap();
    let evil = Template::from_dockerfile_text("FROM bare\nADD evil /srv/evil\n", files.path()).unwrap();
    let error = evil.build(&host, "evil").await.unwrap_err().to_string();
    assert!(
        error.contains("evil: ../../evil: `..` in a name of an archive is refused") && error.contains("line 2"),
        "{error}"
    );
}

/// An archive with one file, whose name the `tar` crate would not write.
fn archive_with_name(name: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(0o644);
    header.set_size(1);
    header.set_cksum();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append(&header, &b"x"[..]).unwrap();
    archive.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_into_and_out_of_an_image_that_has_no_tar() {
    vm_test_or_return!();
    let Some((_dir, host)) = bare("files_are_copied_into…").await else { return };
    let files = tempfile::tempdir().unwrap();
    let at = |name: &str| files.path().join("app").join(name);
    fs::create_dir(files.path().join("app")).unwrap();
    fs::write(at("tool"), "tool").unwrap();
    fs::set_permissions(at("tool"), fs::Permissions::from_mode(0o2755)).unwrap();
    fs::File::options().write(true).open(at("tool")).unwrap().set_modified(std::time::UNIX_EPOCH + DAY).unwrap();
    std::os::unix::fs::symlink("tool", at("link")).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let none = rustix::fs::XattrFlags::empty();
    // Not every file system and not every user has both.
    let capable = rustix::fs::setxattr(at("tool"), "security.capability", &capability, none).is_ok();
    let notes = rustix::fs::setxattr(at("tool"), "user.note", b"a\nb", none).is_ok();

    let dockerfile = "FROM bare AS one\nCOPY --chown=7:8 app/ /srv/\nCOPY app/tool /srv/new/tool\nFROM base\nUSER root\n\
                      COPY --from=one /srv/ /srv/\nRUN ln /srv/tool /srv/again\n";
    let built = Template::from_dockerfile_text(dockerfile, files.path()).unwrap();
    built.build(&host, "copied").await.unwrap();
    let bare = Template::builder("bare").context(files.path()).copy_step(CopyStep::new("app", "/srv").owner("7:8"));
    bare.build(&host, "bare-copied").await.unwrap();
    let sandbox = Sandbox::create(&host, "bare-copied").await.unwrap();
    assert_eq!(sandbox.files().read("/srv/tool").await.unwrap(), b"tool"[..]);
    assert_eq!(sandbox.files().stat("/srv/link").await.unwrap().symlink_target.as_deref(), Some("/srv/tool"));
    sandbox.kill().await.unwrap();

    let sandbox = Sandbox::create(&host, "copied").await.unwrap();
    let output = sandbox.command("python3").args(["-c", ATTRIBUTES]).output().await.unwrap();
    let said = output.stdout_utf8();
    let capability: String = capability.iter().map(|byte| format!("{byte:02x}")).collect();
    let capability = if capable { format!(" security.capability={capability}") } else { String::new() };
    let of_tool = format!("0o102755 0:0 86400 2{capability}{}", if notes { " user.note=610a62" } else { "" });
    for line in [format!("/srv/tool {of_tool}"), format!("/srv/again {of_tool}")] {
        assert!(said.lines().any(|told| told == line), "{line} is not in {said}{}", output.stderr_utf8());
    }
    assert_eq!(run(&sandbox, "cat /srv/new/tool; readlink /srv/link").await, "tooltool");
}

const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
