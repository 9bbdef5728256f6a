//! Machines as they are: what `docs/operations.md` says of each, a sandbox runs or the opening is refused with the
//! remedy.
#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::fs::PermissionsExt;

use common::lacking::{self, IPV6, Lacking, Then, USER_NAMESPACES};
use common::mount::Mount;

/// Not a test by itself: runs on the machines that the tests make.
#[test]
fn program_that_opens() {
    lacking::program();
}

/// What the opening of a host on an empty data directory is refused with.
fn refused(lacking: Lacking) -> String {
    let dir = tempfile::tempdir().unwrap();
    let said = lacking.open(dir.path(), Then::Nothing);
    said.strip_prefix("refused, host_lacks: ").unwrap_or_else(|| panic!("{said}")).to_owned()
}

#[track_caller]
fn assert_tells(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
    assert!(!text.contains("xtask"), "a user of the library has no xtask: {text}");
}

/// Root and QEMU, without which the program would tell of these.
macro_rules! root_or_return {
    () => {
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        if !common::has_root_and_qemu(&name) {
            return;
        }
    };
}

#[test]
fn a_machine_that_lacks_nothing_opens() {
    root_or_return!();
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Lacking::nothing().open(dir.path(), Then::Nothing), "open");
}

#[test]
fn without_tap_devices_the_opening_names_the_driver_and_the_containers_option() {
    root_or_return!();
    let text = refused(Lacking::nothing().without_directory("/dev/net"));
    assert_tells(&text, &["no tap devices", "`modprobe tun`", "--device /dev/net/tun"]);
}

#[test]
fn a_right_that_every_start_takes_is_named_at_the_opening() {
    root_or_return!();
    for (capability, words) in [
        ("sys_admin", ["network namespace", "CAP_SYS_ADMIN"]),
        ("net_admin", ["make a tap", "CAP_NET_ADMIN"]),
        ("net_raw", ["watch the guest's packets", "CAP_NET_RAW"]),
        ("setuid", ["user of its own", "CAP_SETUID"]),
        ("setgid", ["user of its own", "CAP_SETGID"]),
        ("kill", ["would outlive this program", "CAP_KILL"]),
    ] {
        assert_tells(&refused(Lacking::nothing().without_capability(capability)), &words);
    }
}

#[test]
fn under_kvm_the_rights_to_give_a_vmm_its_device_are_tried_too() {
    root_or_return!();
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped: under_kvm_the_rights_to_give_a_vmm_its_device_are_tried_too: there is no /dev/kvm");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kvm = || Lacking::nothing().variable("WRENN_VMM", "qemu").variable("WRENN_ACCELERATION", "kvm");
    assert_eq!(kvm().with_only(KVM).open(dir.path(), Then::Nothing), "open");
    for capability in ["mknod", "chown", "fowner"] {
        let text = refused(kvm().without_capability(capability));
        assert_tells(&text, &["/dev/kvm of its own", "CAP_MKNOD, CAP_CHOWN, CAP_FOWNER", "WRENN_ACCELERATION=tcg"]);
    }
    assert_tells(&refused(kvm().without_call("mount")), &["/dev/kvm of its own", "apparmor=unconfined"]);
}

/// The devices of Docker's containers, and what is added to them one by one.
#[test]
fn a_containers_device_rules_are_met_by_trying() {
    root_or_return!();
    let group = std::path::Path::new("/sys/fs/cgroup/devices").join(format!("wrenn-test-{}", std::process::id()));
    if let Err(error) = std::fs::create_dir(&group) {
        println!("skipped: a_containers_device_rules_are_met_by_trying: no devices of cgroup version 1: {error}");
        return;
    }
    let allow = |rule: &str| std::fs::write(group.join("devices.allow"), rule).unwrap();
    std::fs::write(group.join("devices.deny"), "a").unwrap();
    for rule in ["c *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:* rwm", "c 136:* rwm"]
    {
        allow(rule);
    }
    let join = format!("echo $$ > {}/cgroup.procs", group.display());
    let inside = || Lacking::nothing().variable("WRENN_ACCELERATION", "tcg").after(&join);
    let text = refused(inside());
    allow("c 10:200 rwm");
    let opened = inside().open(tempfile::tempdir().unwrap().path(), Then::Nothing);
    std::fs::remove_dir(&group).unwrap();
    assert_tells(&text, &["/dev/net/tun may not be opened", "--device /dev/net/tun"]);
    assert_eq!(opened, "open");
}

#[test]
fn a_call_that_a_seccomp_profile_denies_is_found_at_the_opening() {
    root_or_return!();
    assert_tells(&refused(Lacking::nothing().without_call("unshare")), &["network namespace", "CAP_SYS_ADMIN"]);
}

#[test]
fn a_user_namespace_has_no_users_for_vmms() {
    root_or_return!();
    let dir = tempfile::tempdir().unwrap();
    let said = Lacking::nothing().in_user_namespace().without_directory("/run").open(dir.path(), Then::Nothing);
    assert_tells(&said, &["refused", "user of its own", "outside of user namespaces"]);
}

#[test]
fn a_user_without_rights_opens_or_is_told_what_to_allow() {
    root_or_return!();
    let user = || Lacking::nothing().run_by(1_234_569);
    let dir = tempfile::tempdir().unwrap();
    let allowed = || user().with_device_for_all("/dev/net/tun");
    assert_eq!(allowed().open(dir.path(), Then::Nothing), "open");
    let closed = allowed().after("chmod 600 /dev/net/tun");
    assert_tells(&refused(closed), &["/dev/net/tun may not be opened", "chmod 0666 /dev/net/tun"]);
    let text = refused(allowed().without_call(USER_NAMESPACES));
    assert_tells(&text, &["user namespaces", "max_user_namespaces", "unprivileged_userns_clone", "apparmor_restrict"]);
}

#[test]
fn without_ipv6_guests_have_ipv4_alone_and_the_doctor_says_so() {
    vm_test_or_return!();
    let open = |lacking: Lacking| lacking.open(common::own_data_dir().path(), Then::TellOfNetworkAndRun);
    let text = open(Lacking::nothing().without_call(IPV6));
    assert_tells(&text, &["guests have IPv4 alone: for IPv6 the kernel needs NF_TPROXY_IPV6", "; hello again"]);
    let text = open(Lacking::nothing());
    assert_tells(&text, &["guests have IPv4 and IPv6; hello again"]);
}

#[test]
fn a_run_directory_that_cannot_be_written_is_named() {
    root_or_return!();
    let text = refused(Lacking::nothing().after("mount -t tmpfs -o ro none /run"));
    assert_tells(&text, &["/run/wrenn cannot be used", "--tmpfs /run"]);
}

#[test]
fn the_command_for_qemu_is_that_of_this_distribution() {
    root_or_return!();
    let no_qemu = || Lacking::nothing().variable("WRENN_QEMU", "/nonexistent/qemu");
    let on = |release: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), release).unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o644)).unwrap();
        refused(no_qemu().after(format!("mount --bind {} /etc/os-release", file.path().display())))
    };
    assert_tells(&on("ID=debian\n"), &["/nonexistent/qemu", "`apt-get install qemu-system-x86`", "WRENN_QEMU"]);
    assert_tells(&on("ID=ubuntu\nID_LIKE=debian\n"), &["`apt-get install qemu-system-x86`"]);
    assert_tells(&on("ID=fedora\n"), &["`dnf install qemu-system-x86`"]);
    assert_tells(&on("ID=alpine\n"), &["the package of your distribution that has qemu-system-x86_64"]);
    // As on a machine that was never set up.
    let text = refused(Lacking::nothing().without_qemu());
    assert_tells(&text, &["qemu-system-x86_64 is not here", "install"]);
}

#[test]
fn a_qemu_that_is_too_old_or_lacks_the_machine_is_refused() {
    root_or_return!();
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, version: &str, machines: &str| {
        let path = dir.path().join(name);
        let lines =
            format!("#!/bin/sh\n[ $1 = --version ] && echo 'QEMU emulator version {version}' || echo '{machines}'\n");
        std::fs::write(&path, lines).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    let old = script("old", "5.2.0 (Debian 1:5.2+dfsg-11)", "microvm              microvm (i386)");
    let text = refused(Lacking::nothing().variable("WRENN_QEMU", old));
    assert_tells(&text, &["is QEMU 5.2.0", "QEMU 6.2 or later"]);
    let bare = script("bare", "9.1.0 (qemu-kvm-9.1.0-1.el9)", "q35                  Standard PC");
    let text = refused(Lacking::nothing().variable("WRENN_QEMU", bare));
    assert_tells(&text, &["without the machine `microvm`", "Debian's, Ubuntu's and Fedora's"]);
}

#[test]
fn all_that_is_missing_is_in_one_error() {
    root_or_return!();
    let read_only = Mount::tmpfs("size=1M,ro");
    let bare = Lacking::nothing().without_directory("/dev/net").without_capability("kill");
    let said = bare.variable("WRENN_QEMU", "/nonexistent/qemu").open(read_only.path(), Then::Nothing);
    assert_tells(
        &said,
        &[
            "host_lacks: this machine lacks 4 things that sandboxes need",
            "(1) ",
            "WRENN_DATA_DIR",
            "(2) /nonexistent/qemu is not here",
            "(3) this host has no tap devices",
            "`modprobe tun`",
            "(4) ",
            "CAP_KILL",
        ],
    );
}

#[test]
fn too_little_memory_under_a_control_group_is_named_with_the_group() {
    root_or_return!();
    let name = format!("wrenn-test-{}", std::process::id());
    let group = std::path::Path::new("/sys/fs/cgroup/memory").join(&name);
    let two = std::path::Path::new("/sys/fs/cgroup").join(&name);
    let (group, limit) = match (std::fs::create_dir(&group), std::fs::create_dir(&two)) {
        (Ok(()), _) => (group, "memory.limit_in_bytes"),
        (Err(_), Ok(())) if two.join("memory.max").exists() => (two, "memory.max"),
        (Err(error), _) => {
            println!("skipped: too_little_memory_under_a_control_group_is_named_with_the_group: {error}");
            let _ = std::fs::remove_dir(&two);
            return;
        }
    };
    std::fs::write(group.join(limit), (150_u64 << 20).to_string()).unwrap();
    let text = refused(Lacking::nothing().after(format!("echo $$ > {}/cgroup.procs", group.display())));
    std::fs::remove_dir(&group).unwrap();
    assert_tells(&text, &["MiB are free under the limit of", &name, "at least 192 MiB"]);
}

#[test]
fn a_full_data_directory_opens_so_that_what_it_has_can_be_deleted() {
    root_or_return!();
    let full = Mount::tmpfs("size=1M");
    // The parts of the directory are there from before.
    assert_eq!(Lacking::nothing().open(full.path(), Then::Nothing), "open");
    let ballast = std::fs::File::create(full.path().join("ballast")).unwrap();
    while std::io::Write::write_all(&mut &ballast, &[1; 4096]).is_ok() {}
    assert_eq!(Lacking::nothing().open(full.path(), Then::Nothing), "open");
}

/// Each runs a sandbox, pauses and resumes it.
#[test]
fn what_sandboxes_can_do_without_they_do_without() {
    vm_test_or_return!();
    let dir = common::own_data_dir();
    let run = |lacking: Lacking| lacking.open(dir.path(), Then::Run);
    let unprivileged = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
    assert_eq!(unprivileged.trim(), "0", "sysctl vm.unprivileged_userfaultfd lets everybody have a userfaultfd");
    for (what, lacking, paging) in [
        ("nothing", Lacking::nothing(), "Lazy"),
        ("the capabilities that a container gets", Lacking::nothing().with_only(CONTAINER), "Lazy"),
        ("more than the least capabilities for lazy restores", Lacking::nothing().with_only(LAZY), "Lazy"),
        ("more than the least capabilities", Lacking::nothing().with_only(LEAST), "Eager"),
        ("CAP_SYS_PTRACE", Lacking::nothing().without_capability("sys_ptrace"), "Eager"),
        ("ptrace", Lacking::nothing().without_call("ptrace"), "Eager"),
        ("pidfd_getfd", Lacking::nothing().without_call("pidfd_getfd"), "Eager"),
        ("userfaultfd, by its device", Lacking::nothing().without_call("userfaultfd"), "Lazy"),
        ("a device of userfaultfd and of KVM", Lacking::nothing().with_devices(&["net/tun"]), "Eager"),
        ("userfaultfd, in any way", Lacking::nothing().with_devices(&["net/tun"]).without_call("userfaultfd"), "Eager"),
        (
            "mounts, under emulation",
            Lacking::nothing().variable("WRENN_ACCELERATION", "tcg").without_call("mount"),
            "Lazy",
        ),
        ("KVM", Lacking::nothing().with_devices(&["net/tun", "userfaultfd"]), "Lazy"),
        ("control groups", Lacking::nothing().without_directory("/sys/fs/cgroup"), "Lazy"),
    ] {
        assert_eq!(run(lacking), format!("hello again {paging}"), "without {what}");
    }
    // What was asked for by name, and cannot be had, is refused.
    let text = Lacking::nothing().without_call("ptrace").variable("WRENN_PAGING", "lazy").open(dir.path(), Then::Run);
    assert_tells(&text, &["refused, host_lacks", "Paging::Lazy cannot work", "CAP_SYS_PTRACE", "Paging::Eager"]);
}

#[test]
fn sandboxes_run_on_file_systems_of_other_kinds() {
    vm_test_or_return!();
    for (kind, mount) in [("overlayfs", Mount::overlay()), ("btrfs", Mount::btrfs())] {
        match mount {
            Ok(mount) => {
                common::link_images(mount.path());
                assert_eq!(Lacking::nothing().open(mount.path(), Then::Run), "hello again Lazy", "{kind}");
            }
            Err(reason) => println!("skipped: sandboxes_run_on_file_systems_of_other_kinds: {kind}: {reason}"),
        }
    }
}

/// Those of `docs/operations.md`'s container: Docker's own and three more.
const CONTAINER: &[&str] = &[
    "chown",
    "dac_override",
    "fsetid",
    "fowner",
    "mknod",
    "net_raw",
    "setgid",
    "setuid",
    "setfcap",
    "setpcap",
    "net_bind_service",
    "sys_chroot",
    "kill",
    "audit_write",
    "sys_admin",
    "net_admin",
    "sys_ptrace",
];
/// Without KVM.
const LAZY: &[&str] =
    &["sys_admin", "net_admin", "net_raw", "sys_ptrace", "setuid", "setgid", "kill", "dac_read_search"];
/// Under KVM.
const KVM: &[&str] = &[
    "sys_admin",
    "net_admin",
    "net_raw",
    "sys_ptrace",
    "setuid",
    "setgid",
    "kill",
    "dac_read_search",
    "mknod",
    "chown",
    "fowner",
];
/// Without lazy restores, and without KVM.
const LEAST: &[&str] = &["sys_admin", "net_admin", "net_raw", "setuid", "setgid", "kill"];
