//! A report adds up: the steps of a create, a resume, a fork and a pause are the whole that a caller waited for.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::run;
use wrenn_core::{Sandbox, SaveReport};

/// The steps miss no more of the whole than this part of it, or a millisecond.
const MISSING_MAX: f64 = 0.05;

fn adds_up(what: &str, sum: Duration, whole: Duration) {
    let missing = whole.saturating_sub(sum);
    assert!(sum <= whole, "{what}: {sum:?} of {whole:?}");
    assert!(missing <= whole.mul_f64(MISSING_MAX).max(Duration::from_millis(1)), "{what}: {sum:?} of {whole:?}");
}

/// What a caller waits for is what the report tells of, but for the handing over.
fn is_all_that_was_waited_for(what: &str, whole: Duration, waited: Duration) {
    assert!(whole <= waited, "{what}: {whole:?}, and the caller waited {waited:?}");
    let hidden = waited - whole;
    assert!(hidden <= waited.mul_f64(MISSING_MAX).max(Duration::from_millis(20)), "{what}: {whole:?} of {waited:?}");
}

async fn check_restore(what: &str, sandbox: &Sandbox, waited: Option<Duration>) {
    let report = sandbox.restore_report().await.unwrap();
    adds_up(what, report.steps.sum(), report.steps.whole);
    if let Some(waited) = waited {
        is_all_that_was_waited_for(what, report.steps.whole, waited);
    }
    let phases = report.phases;
    let machine = phases.spawn + phases.populate + phases.load;
    assert!(machine <= report.steps.machine, "{what}: {phases:?} in {:?}", report.steps);
    assert!(phases.describe + phases.run <= report.steps.run, "{what}: {phases:?} in {:?}", report.steps);
    for (step, took) in [("slot", report.steps.slot), ("agent", report.steps.agent), ("spawn", phases.spawn)] {
        assert!(!took.is_zero(), "{what}: {step} took no time");
    }
}

fn check_save(what: &str, report: SaveReport, waited: Duration) {
    assert!(report.steps.sum() <= report.steps.whole, "{what}: {report:?}");
    let missing = report.steps.whole - report.steps.sum();
    let most = report.steps.whole.mul_f64(MISSING_MAX).max(Duration::from_millis(2));
    assert!(missing <= most, "{what}: {report:?}");
    assert!(report.steps.whole <= waited, "{what}: {report:?} in {waited:?}");
    assert!(report.phases.stop <= report.steps.stop, "{what}: {report:?}");
    assert!(report.stopped_for <= report.steps.stop && report.steps.stop <= report.frozen_for, "{what}: {report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_steps_of_a_restore_and_a_save_are_the_whole() {
    vm_test_or_return!();
    let host = common::host().await;
    Sandbox::create(&host, "base").await.unwrap().kill().await.unwrap();

    let asked = Instant::now();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    check_restore("create", &sandbox, Some(asked.elapsed())).await;
    run(&sandbox, "head -c 8000000 /dev/urandom > /dev/shm/written").await;
    assert!(sandbox.save_report().await.unwrap().is_none(), "nothing was saved yet");

    let asked = Instant::now();
    let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
    let waited = asked.elapsed();
    assert_eq!(sandbox.restore_report().await.unwrap().tracking, host.tracking());
    assert_eq!(sandbox.save_report().await.unwrap().unwrap().tracking, host.tracking());
    check_save("fork", sandbox.save_report().await.unwrap().unwrap(), waited);
    check_restore("child", &child, None).await;
    child.kill().await.unwrap();

    let asked = Instant::now();
    let paused = sandbox.pause().await.unwrap();
    let report = paused.save_report().unwrap();
    check_save("pause", report, asked.elapsed());
    assert!(report.steps.ahead + report.steps.go_on < Duration::from_millis(1), "{report:?}");
    assert!(host.paused(paused.id()).await.unwrap().save_report().is_none(), "who finds it on disk did not see it");

    let asked = Instant::now();
    let sandbox = paused.resume().await.unwrap();
    check_restore("resume", &sandbox, Some(asked.elapsed())).await;
    sandbox.kill().await.unwrap();
}
