//! Copies of a build need nothing of the guest, and keep what a file is.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;

use std::fs;
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

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_into_and_out_of_an_image_that_has_no_tar() {
    vm_test_or_return!();
    let Some(busybox) = busybox() else {
        return skip("files_are_copied_into…", &"there is no static busybox: run `cargo xtask setup`");
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
