//! What a program finds in a guest: the machine that its agent makes of two drives and a kernel.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{run, sandbox};
use wrenn_core::{FileKind, Sandbox};

async fn as_root(sandbox: &Sandbox, line: &str) -> String {
    let output = sandbox.command("sh").args(["-c", line]).user("root").output().await.unwrap();
    assert!(output.status.success(), "{line}: {}\n{}", output.status, output.stderr_utf8());
    output.stdout_utf8().trim_end().to_owned()
}

#[tokio::test]
async fn the_file_systems_and_devices_that_programs_expect_are_there() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let mounts = run(&sandbox, "cat /proc/mounts").await;
    let kind_at = |place: &str| {
        let mut words = mounts.lines().map(|line| line.split(' ').skip(1).take(2).collect::<Vec<_>>());
        words.find(|words| words[0] == place).map(|words| words[1].to_owned()).unwrap_or_default()
    };
    for (place, kind) in [
        ("/", "overlay"),
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/sys/fs/cgroup", "cgroup2"),
        ("/dev", "devtmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/run", "tmpfs"),
    ] {
        assert_eq!(kind_at(place), kind, "{place}: {mounts}");
    }
    // Devices as any user has them, process substitution, and places that all users may write to.
    let line = "head -c 4 /dev/zero >/dev/null && head -c 4 /dev/urandom | wc -c && cat <(echo substituted) && \
                stat -c '%a' /tmp /var/tmp /dev/shm /dev/null / && echo x >/tmp/x && echo x >/dev/shm/x && echo written";
    let there = sandbox.command("bash").args(["-c", line]).output().await.unwrap();
    assert_eq!(there.stdout_utf8(), "4\nsubstituted\n1777\n1777\n1777\n666\n755\nwritten\n", "{}", there.stderr_utf8());
    // Neither drive is seen but through the overlay, and the initramfs is gone.
    assert_eq!(run(&sandbox, "ls -d /base /drive /newroot /modules /init 2>/dev/null | wc -l").await, "0");
    assert!(!run(&sandbox, "cat /proc/modules").await.is_empty(), "its drivers are modules");
    assert_eq!(run(&sandbox, "cat /proc/sys/kernel/hostname").await, sandbox.id().as_str());
    sandbox.kill().await.unwrap();
}

#[tokio::test]
async fn a_directory_of_the_base_image_can_be_moved_and_a_move_that_fails_changes_nothing() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let files = sandbox.files().as_user("root");
    let sums = "find . -type f -exec sha256sum {} + | sort; find . -printf '%p %m %u %l\\n' | sort";
    let before = as_root(&sandbox, &format!("cd /etc/skel && {sums}")).await;
    assert!(before.contains(".bashrc"), "{before}");
    // A pipe has nothing to copy; the rest of the tree has.
    as_root(&sandbox, "mkfifo /etc/skel/pipe").await;
    let refused = format!("{:?}", files.rename("/etc/skel", "/dev/shm/skel").await.unwrap_err());
    assert!(refused.contains("/etc/skel to /dev/shm/skel: pipe is a device"), "{refused}");
    assert_eq!(as_root(&sandbox, "ls -A /dev/shm | wc -l; rm /etc/skel/pipe").await, "0");
    assert_eq!(as_root(&sandbox, &format!("cd /etc/skel && {sums}")).await, before);

    // To another file system it is copied, and on its own it is renamed.
    for (from, to) in
        [("/etc/skel", "/dev/shm/skel"), ("/dev/shm/skel", "/var/tmp/skel"), ("/var/tmp/skel", "/etc/kept")]
    {
        files.rename(from, to).await.unwrap();
        assert_eq!(as_root(&sandbox, &format!("cd {to} && {sums}")).await, before, "{to}");
        assert!(!files.exists(from).await.unwrap());
        assert_eq!(files.stat(to).await.unwrap().kind, FileKind::Directory);
    }
    sandbox.kill().await.unwrap();
}

/// Uploads a form whose path follows its file, so that the agent does not know where the file belongs when it comes.
const UPLOAD: &str = r#"
import sys, urllib.request, urllib.error
def part(name, text): return ('--edge\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n' % (name, '; filename="f"' if name == 'file' else '')).encode() + text + b'\r\n'
body = part('file', b'x' * int(sys.argv[3])) + part('path', sys.argv[2].encode()) + b'--edge--\r\n'
headers = {'x-access-token': sys.argv[1], 'content-type': 'multipart/form-data; boundary=edge'}
request = urllib.request.Request('http://127.0.0.1:49983/files', body, headers, method='POST')
try: print(urllib.request.urlopen(request, timeout=60).status)
except urllib.error.HTTPError as error: print(error.code, error.read().decode())
"#;

#[tokio::test]
async fn a_form_may_name_its_place_last_also_on_another_disk() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let token = sandbox.agent_token().unwrap();
    let upload = async |path: &str, bytes: &str| {
        let output = sandbox.command("python3").args(["-c", UPLOAD, &token, path, bytes]).output().await.unwrap();
        assert!(output.status.success(), "{}", output.stderr_utf8());
        output.stdout_utf8().trim_end().to_owned()
    };
    assert_eq!(upload("/dev/shm/made", "3000000").await, "200");
    assert_eq!(run(&sandbox, "stat -c '%s %U' /dev/shm/made; tr -d x </dev/shm/made | wc -c").await, "3000000 user\n0");
    // One that is full says so, and keeps what it had.
    as_root(&sandbox, "mkdir /mnt/small && mount -t tmpfs -o size=1m,mode=1777 none /mnt/small && echo old >/mnt/small/f && chown user /mnt/small/f").await;
    let refused = upload("/mnt/small/f", "3000000").await;
    assert!(refused.starts_with("507 "), "{refused}");
    assert_eq!(run(&sandbox, "cat /mnt/small/f; ls -A /mnt/small").await, "old\nf");
    // Nothing of either upload is left on the way.
    assert_eq!(run(&sandbox, "ls -A /home/user /tmp /dev/shm | grep -c wrenn || true").await, "0");
    sandbox.kill().await.unwrap();
}
