//! How sandboxes end, with a fake VMM and virtual time: every end tells why, and nothing keeps one from coming.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::error::Error;
use crate::host::lifecycle_tests::fake_host;
use crate::host::shutdown::Running;
use crate::sandbox::event::HostEventKind;
use crate::sandbox::handle::Sandbox;
use crate::state::{Exit, OnExpiry, SandboxState, TtlFrom};
use crate::vmm::fake::Op;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn after_an_expiry_that_killed_every_handle_answers_with_the_reason() {
    let (_dir, host, _script) = fake_host().await;
    let sandbox = Sandbox::builder(&host, "fake").ttl(SECOND).create().await.unwrap();
    assert_eq!(timeout(MINUTE, sandbox.wait()).await.unwrap(), Exit::Expired);
    assert_eq!(timeout(MINUTE, sandbox.wait()).await.unwrap(), Exit::Expired, "as often as it is asked");
    timeout(MINUTE, sandbox.kill()).await.unwrap().unwrap();
    for refused in [sandbox.exec("true").await.map(drop), sandbox.pause().await.map(drop), sandbox.set_ttl(None).await]
    {
        let Err(Error::InvalidState { state: SandboxState::Ended, exit: Some(Exit::Expired), .. }) = &refused else {
            panic!("{refused:?}")
        };
        assert!(refused.unwrap_err().to_string().contains("its time-to-live was over"));
    }
    assert_eq!(sandbox.console(), "", "the console stays");
}

#[tokio::test(start_paused = true)]
async fn a_kill_does_not_wait_for_what_is_being_done() {
    for hanging in [Op::Stop, Op::Save, Op::SaveAhead] {
        let (_dir, host, script) = fake_host().await;
        let sandbox = Sandbox::create(&host, "fake").await.unwrap();
        let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
        script.hang(hanging);
        let saving = tokio::spawn({
            let sandbox = sandbox.clone();
            async move {
                if hanging == Op::SaveAhead { sandbox.fork(1).await.map(drop) } else { sandbox.pause().await.map(drop) }
            }
        });
        tokio::time::sleep(SECOND).await;
        assert_eq!(sandbox.state(), SandboxState::Saving, "{hanging:?}");
        let asked = Instant::now();
        timeout(MINUTE, sandbox.kill()).await.unwrap().unwrap();
        assert!(asked.elapsed() < SECOND, "{hanging:?}: {:?}", asked.elapsed());
        assert_eq!(sandbox.wait().await, Exit::Killed);
        let refused = timeout(MINUTE, saving).await.unwrap().unwrap();
        assert!(matches!(refused, Err(Error::InvalidState { exit: Some(Exit::Killed), .. })), "{refused:?}");
        assert!(
            matches!(host.paused(sandbox.id()).await, Err(Error::NotFound { .. })),
            "its earlier pause went with it"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_to_live_that_kills_does_not_wait_for_what_is_being_done() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::builder(&host, "fake").ttl(MINUTE).create().await.unwrap();
    script.hang(Op::Save);
    let asked = Instant::now();
    let refused = timeout(10 * MINUTE, sandbox.pause()).await.unwrap();
    assert!(matches!(refused, Err(Error::InvalidState { exit: Some(Exit::Expired), .. })), "{refused:?}");
    assert!(asked.elapsed() < MINUTE + SECOND, "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_save_that_hangs_is_given_up_and_its_end_says_so() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    script.hang(Op::Save);
    let refused = timeout(120 * MINUTE, sandbox.pause()).await.unwrap();
    let Err(Error::InvalidState { exit: Some(Exit::Broken { error, .. }), .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(error.contains("did not end within"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_cannot_be_paused_does_not_outlive_its_time() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::builder(&host, "fake").ttl(MINUTE).on_expiry(OnExpiry::Pause).create().await.unwrap();
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    script.fail(Op::Save, usize::MAX);
    let exit = timeout(5 * MINUTE, sandbox.wait()).await.unwrap();
    let Exit::NotPaused { error } = &exit else { panic!("{exit:?}") };
    assert!(error.contains("Save fails"), "{error}");
    assert!(host.paused(sandbox.id()).await.is_ok(), "its earlier pause is kept");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_dies_tells_how_to_every_call() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    script.die();
    let Exit::VmEnded { exit, .. } = sandbox.wait().await else { panic!() };
    assert!(exit.contains("SIGKILL"), "{exit}");
    for refused in
        [sandbox.exec("true").await.map(drop), sandbox.pause().await.map(drop), sandbox.fork(1).await.map(drop)]
    {
        assert!(matches!(&refused, Err(Error::VmEnded { exit, .. }) if exit.contains("SIGKILL")), "{refused:?}");
    }
    sandbox.kill().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn any_time_to_live_can_be_given() {
    let (_dir, host, _script) = fake_host().await;
    let sandbox = Sandbox::builder(&host, "fake").ttl(Duration::MAX).create().await.unwrap();
    assert_eq!(sandbox.info().expires_at, None);
    sandbox.set_ttl(Some(Duration::MAX)).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    assert_eq!(sandbox.state(), SandboxState::Running);
    sandbox.set_ttl(Some(Duration::ZERO)).await.unwrap();
    assert_eq!(sandbox.wait().await, Exit::Expired);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_in_use_does_not_end_where_its_time_counts_from_the_last_use() {
    let (_dir, host, _script) = fake_host().await;
    let create = Sandbox::builder(&host, "fake").ttl(MINUTE).ttl_from(TtlFrom::LastUse);
    let sandbox = create.create().await.unwrap();
    for _ in 0..5 {
        tokio::time::sleep(MINUTE - SECOND).await;
        sandbox.ping().await.unwrap();
    }
    assert_eq!(sandbox.state(), SandboxState::Running);
    tokio::time::sleep(MINUTE + SECOND).await;
    assert_eq!(sandbox.state(), SandboxState::Ended);
}

#[tokio::test(start_paused = true)]
async fn events_tell_what_becomes_of_sandboxes_and_why() {
    let (_dir, host, _script) = fake_host().await;
    let mut events = host.events();
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
    child.kill().await.unwrap();
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    sandbox.checkpoint().await.unwrap();
    sandbox.snapshot("warm").await.unwrap();
    sandbox.set_ttl(Some(SECOND)).await.unwrap();
    sandbox.wait().await;
    let (parent, template) = (sandbox.id().clone(), "warm".parse().unwrap());
    let expected = [
        (sandbox.id(), HostEventKind::Created { template: "fake".parse().unwrap() }),
        (child.id(), HostEventKind::Forked { parent }),
        (child.id(), HostEventKind::Ended { exit: Exit::Killed }),
        (sandbox.id(), HostEventKind::Paused),
        (sandbox.id(), HostEventKind::Resumed),
        (sandbox.id(), HostEventKind::Checkpointed),
        (sandbox.id(), HostEventKind::Snapshot { template }),
        (sandbox.id(), HostEventKind::Expired),
        (sandbox.id(), HostEventKind::Ended { exit: Exit::Expired }),
    ];
    for (id, kind) in expected {
        let event = timeout(MINUTE, events.next()).await.unwrap().unwrap().unwrap();
        assert_eq!((&event.sandbox, event.kind), (id, kind));
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_pauses_what_runs_and_lets_nothing_start() {
    let (_dir, host, script) = fake_host().await;
    let mut sandboxes = Vec::new();
    for _ in 0..3 {
        sandboxes.push(Sandbox::create(&host, "fake").await.unwrap());
    }
    script.fail(Op::Save, 1);
    let failed = host.shutdown(Running::Pause).await;
    assert_eq!(failed.len(), 1, "{failed:?}");
    let paused = sandboxes.iter().filter(|sandbox| sandbox.state() == SandboxState::Paused).count();
    assert_eq!(paused, 2);
    let refused = Sandbox::create(&host, "fake").await.unwrap_err();
    assert!(refused.to_string().contains("shut down"), "{refused}");
    assert!(host.shutdown(Running::Kill).await.is_empty());
    assert!(sandboxes.iter().all(Sandbox::is_over));
}
