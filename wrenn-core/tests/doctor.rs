//! The doctor says what is wrong with a machine, and of a good one that it is good.

mod common;

use wrenn_core::{Driver, Error, Host, Tracking, Verdict};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_runs_sandboxes_is_able_and_has_a_reason_for_its_vmm() {
    vm_test_or_return!();
    let diagnosis = Host::doctor().await;
    assert!(diagnosis.is_able(), "{diagnosis}");
    let host = common::host().await;
    let choice = diagnosis.choice.as_ref().unwrap();
    assert_eq!(choice.driver, host.probe().driver, "{diagnosis}");
    assert!(!choice.reason.is_empty());
    for finding in &diagnosis.findings {
        assert_eq!(finding.remedy.is_none(), finding.verdict == Verdict::Good, "{finding:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named_with_its_remedy() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = file.path().join("below");
    let builder = Host::builder().data_dir(&below).qemu("/nonexistent/qemu").firecracker("/bin/true");
    let diagnosis = builder.doctor().await;
    assert!(!diagnosis.is_able());
    let report = diagnosis.to_string();
    assert!(report.contains(below.to_str().unwrap()) && report.contains("WRENN_DATA_DIR"), "{report}");
    assert!(report.contains("/nonexistent/qemu is not here, or is not QEMU"), "{report}");
    assert!(report.contains("/bin/true is not here, or is not Firecracker"), "{report}");
    assert!(report.contains("No VMM can be used"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firecracker_with_a_known_flaw_or_another_releases_jailer_is_told_of() {
    use std::os::unix::fs::PermissionsExt;
    if std::env::var_os("WRENN_JAILER").is_some() {
        println!("skipped: a_firecracker_with_a_known_flaw_or_another_releases_jailer_is_told_of: WRENN_JAILER is set");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, version: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    let firecracker = put("firecracker", "Firecracker v1.16.0");
    let findings = || async {
        let diagnosis = Host::builder().data_dir(dir.path().join("data")).firecracker(&firecracker).doctor().await;
        let of = |subject| diagnosis.findings.iter().find(|finding| finding.subject == subject).unwrap().clone();
        (of("firecracker"), of("jailer"))
    };
    put("jailer", "Jailer v1.16.1");
    let (flawed, other) = findings().await;
    assert_eq!((flawed.verdict, other.verdict), (Verdict::Lacking, Verdict::Lacking));
    assert!(flawed.remedy.as_ref().is_some_and(|remedy| remedy.contains("mended in 1.16.1")), "{flawed:?}");
    assert!(other.found.starts_with("1.16.1") && other.found.ends_with("Firecracker is 1.16.0"), "{other:?}");
    put("firecracker", "Firecracker v1.16.1");
    let (good, same) = findings().await;
    assert_eq!((good.verdict, same.verdict), (Verdict::Good, Verdict::Good), "{good:?} {same:?}");
    std::fs::remove_file(dir.path().join("jailer")).unwrap();
    assert_eq!(findings().await.1.verdict, Verdict::Lacking);
}

/// What a host refuses at its opening, the doctor has named before.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_of_tracking_that_cannot_work_is_missing_and_refused_and_one_that_can_is_named() {
    vm_test_or_return!();
    let ways = [Tracking::Async, Tracking::Sync, Tracking::Compare, Tracking::Vmm];
    for asked in ways {
        let builder = || Host::builder().driver(Driver::Qemu).tracking(asked);
        let (diagnosis, opened) = (builder().doctor().await, builder().open().await);
        let finding = diagnosis.findings.iter().find(|finding| finding.subject == "tracking").unwrap();
        match opened {
            Ok(host) => {
                assert_eq!(host.tracking(), asked);
                assert!(diagnosis.is_able() && finding.found.contains(&format!("Tracking::{asked:?}")), "{finding:?}");
            }
            Err(Error::Host { problem, remedy, .. }) => {
                assert!(!diagnosis.is_able(), "{diagnosis}");
                assert_eq!((&finding.found, finding.remedy.as_ref()), (&problem, Some(&remedy)));
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    let refused = Host::builder().driver(Driver::Qemu).tracking(Tracking::Vmm).open().await.unwrap_err();
    assert!(refused.to_string().contains("needs Firecracker"), "{refused}");
}
