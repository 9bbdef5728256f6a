//! The doctor says what is wrong with a machine, and of a good one that it is good.

mod common;

use wrenn_core::{Host, Verdict};

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
    assert!(report.contains("apt-get install qemu-system-x86"), "{report}");
    assert!(report.contains("/bin/true is not here, or is not Firecracker"), "{report}");
    assert!(report.contains("No VMM can be used"), "{report}");
}
