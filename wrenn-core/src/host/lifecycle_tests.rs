//! The lifecycle with a fake VMM and virtual time: what becomes of a sandbox when its machine does not do as it is
//! told.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use wrenn_snapshot::{LocalStore, PAGE_BYTES, PageIndex, PageRange, Space};

use crate::defaults::Defaults;
use crate::error::{Error, Result};
use crate::guest::manifest::{Manifest, Surroundings};
use crate::host::filter::SandboxFilter;
use crate::host::handle::Host;
use crate::network::way_out::HostNetwork;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::paused::PausedSandbox;
use crate::sandbox::template::Template;
use crate::sandbox::template::Wanted;
use crate::sandbox::turns::Turns;
use crate::site::Site;
use crate::site::collector::Collector;
use crate::site::data_dir::DataDir;
use crate::site::step::Observer;
use crate::state::{OnExpiry, SandboxState};
use crate::vmm::fake;
use crate::vmm::fake::{FakeVmm, Op, Script};
use crate::vmm::paging::Paging;
use crate::vmm::probe::Probe;
use crate::vmm::residents::Residents;
use crate::vmm::shape::{Acceleration, MachineShape};
use crate::vmm::standbys::Standbys;
use crate::vmm::tracking::Tracking;
use crate::vmm::ways::Handling;

/// A host with one snapshot, `fake`, of a machine that has written a page.
pub(super) async fn fake_host() -> (TempDir, Host, Script) {
    let dir = tempfile::tempdir().unwrap();
    write_image(&dir);
    let shape = MachineShape { vcpus: 1, memory_mib: 128, acceleration: Acceleration::Tcg, tsc_khz: None };
    let state = Manifest {
        vmm: "fake 1".to_owned(),
        shape: shape.clone(),
        made_on: Surroundings::here().clone(),
        image: "base".to_owned(),
        base_digest: "00".to_owned(),
        token: None,
        connections: Vec::new(),
    };
    let script = Script::default();
    let host = open_fake(&dir, &script).await;
    let store = LocalStore::open(dir.path().join("generations")).unwrap();
    let mut pending = store.begin(None).unwrap();
    for space in [Space::Memory, Space::Drive] {
        pending.write_dirty(space, &[1; PAGE_BYTES], &[PageRange::new(0, 1)]).unwrap();
    }
    let generation = pending.publish(&serde_json::to_vec(&state).unwrap()).unwrap();
    Template::name_snapshot(&host.0.site, &"fake".parse().unwrap(), &generation, &shape, &Defaults::default()).unwrap();
    (dir, host, script)
}

/// The host of a directory that has its image, as a program opens it.
pub(super) async fn open_fake(dir: &TempDir, script: &Script) -> Host {
    let probe = Probe { driver: crate::Driver::Qemu, acceleration: Acceleration::Tcg, reason: "a test".to_owned() };
    let data = DataDir::create(dir.path()).unwrap();
    let vmm = Arc::new(FakeVmm::start(script.clone()).await);
    let site = Site {
        store: LocalStore::open(data.generations()).unwrap(),
        data,
        vmm,
        probe,
        memory: Handling { paging: Paging::Lazy, tracking: Tracking::Vmm },
        residents: Residents::default(),
        standbys: Standbys::new(0),
        network: HostNetwork::default(),
        observer: Observer::default(),
        collector: Collector::default(),
    };
    Host::assemble(site, Turns::new(TURNS))
}

/// How many sandboxes of a fake host start at once.
const TURNS: usize = 4;

/// As much of an image as a restore looks at.
fn write_image(dir: &TempDir) {
    let image = dir.path().join("images/base");
    std::fs::create_dir_all(&image).unwrap();
    std::fs::write(image.join("base.ext4"), "").unwrap();
    let manifest = serde_json::json!({
        "format": 1, "suite": "fake", "extra_packages": [], "recipe_sha256": "", "kernel_release": "", "modules": [],
        "agent_sha256": "", "drive_size_bytes": 0, "built_at_unix_s": 0, "packages": [],
        "files": { "base.ext4": { "size_bytes": 0, "allocated_bytes": 0, "sha256": "00" } },
    });
    std::fs::write(image.join("image.json"), manifest.to_string()).unwrap();
}

fn state_of<T: std::fmt::Debug>(refusal: Result<T>) -> SandboxState {
    match refusal {
        Err(Error::InvalidState { state, .. }) => state,
        Err(Error::VmEnded { .. }) => SandboxState::Ended,
        other => panic!("not a refusal: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_fails_leaves_the_sandbox_running() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    assert_eq!(script.take_log(), [Op::Restore, Op::Resume]);
    for failing in [Op::Stop, Op::Save] {
        script.fail(failing, 1);
        assert!(sandbox.pause().await.is_err());
        assert_eq!(sandbox.state(), SandboxState::Running);
        assert_eq!(script.take_log().last(), Some(&Op::Resume), "{failing:?}");
        assert!(host.paused(sandbox.id()).await.is_err(), "nothing was recorded");
    }
    sandbox.pause().await.unwrap();
    assert_eq!(script.take_log(), [Op::Stop, Op::Save, Op::Saved, Op::Kill]);
    assert_eq!(sandbox.state(), SandboxState::Paused);
    assert_eq!(state_of(sandbox.pause().await), SandboxState::Paused);
    assert_eq!(state_of(sandbox.exec("true").await), SandboxState::Paused);
}

#[tokio::test(start_paused = true)]
async fn a_save_that_fails_since_the_machine_has_ended_says_so() {
    for dying in [Op::Stop, Op::Save, Op::SaveAhead] {
        let (_dir, host, script) = fake_host().await;
        let sandbox = Sandbox::create(&host, "fake").await.unwrap();
        script.die_at(dying);
        let error = match dying {
            Op::SaveAhead => sandbox.fork(1).await.map(drop).unwrap_err(),
            _ => sandbox.pause().await.map(drop).unwrap_err(),
        };
        assert!(matches!(&error, Error::VmEnded { exit, .. } if exit.contains("SIGKILL")), "{dying:?}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_cannot_go_on_is_ended() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    script.fail(Op::SaveAhead, 1);
    script.take_log();
    assert!(sandbox.fork(1).await.is_err());
    assert_eq!((script.take_log(), sandbox.state()), (vec![Op::SaveAhead], SandboxState::Running), "it never stopped");
    script.fail(Op::Save, 1);
    script.fail(Op::Resume, 1);
    assert!(sandbox.fork(1).await.is_err());
    assert_eq!(sandbox.state(), SandboxState::Ended);
    assert!(script.take_log().contains(&Op::Kill));
    sandbox.kill().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_two_pauses_one_is_a_refusal() {
    let (_dir, host, _script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    let (one, two) = tokio::join!(sandbox.pause(), sandbox.pause());
    let refused = if one.is_ok() { two } else { one };
    assert_eq!(state_of(refused), SandboxState::Paused);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_dies_ends_its_sandbox_and_keeps_its_pause() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(host.sandboxes(&SandboxFilter::new()).await.unwrap()[0].state, SandboxState::Running);
    script.die();
    assert_eq!(state_of(sandbox.exec("true").await), SandboxState::Ended);
    assert_eq!(host.sandboxes(&SandboxFilter::new()).await.unwrap()[0].state, SandboxState::Paused);
    host.paused(sandbox.id()).await.unwrap().resume().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_time_to_live_runs_from_the_create_and_from_each_resume() {
    let (_dir, host, _script) = fake_host().await;
    let hour = Duration::from_secs(3600);
    let sandbox = Sandbox::builder(&host, "fake").ttl(hour).on_expiry(OnExpiry::Pause).create().await.unwrap();
    tokio::time::sleep(hour / 2).await;
    assert_eq!(sandbox.state(), SandboxState::Running);
    tokio::time::sleep(hour / 2 + Duration::from_secs(1)).await;
    assert_eq!(sandbox.state(), SandboxState::Paused);

    let sandbox = host.paused(sandbox.id()).await.unwrap().resume().await.unwrap();
    tokio::time::sleep(hour - Duration::from_secs(1)).await;
    assert_eq!(sandbox.state(), SandboxState::Running);
    sandbox.set_ttl(Some(2 * hour)).await.unwrap();
    tokio::time::sleep(hour).await;
    assert_eq!(sandbox.state(), SandboxState::Running);
    tokio::time::sleep(hour + Duration::from_secs(1)).await;
    assert_eq!(sandbox.state(), SandboxState::Paused, "what becomes of it is remembered");
}

#[tokio::test(start_paused = true)]
async fn an_expiry_whose_pause_fails_is_tried_again() {
    let (_dir, host, script) = fake_host().await;
    let minute = Duration::from_secs(60);
    let sandbox = Sandbox::builder(&host, "fake").ttl(minute).on_expiry(OnExpiry::Pause).create().await.unwrap();
    script.fail(Op::Save, 2);
    tokio::time::sleep(minute + Duration::from_secs(5)).await;
    assert_eq!(sandbox.state(), SandboxState::Running);
    tokio::time::sleep(minute).await;
    assert_eq!(sandbox.state(), SandboxState::Paused);
    assert_eq!(script.take_log().iter().filter(|op| **op == Op::Save).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_expiry_that_kills_keeps_nothing() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::builder(&host, "fake").create().await.unwrap();
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    sandbox.set_ttl(Some(Duration::from_secs(1))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(sandbox.state(), SandboxState::Ended);
    assert!(script.take_log().contains(&Op::Kill));
    assert!(matches!(host.paused(sandbox.id()).await, Err(Error::NotFound { .. })));
    assert!(host.sandboxes(&SandboxFilter::new()).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_ends_the_machine_and_a_clone_does_not() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    let id = sandbox.id().clone();
    let clone = host.sandbox(&id).unwrap();
    drop(sandbox);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(clone.state(), SandboxState::Running);
    drop(clone);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(script.take_log().contains(&Op::Kill));
    assert!(matches!(host.sandbox(&id), Err(Error::NotFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn one_child_that_fails_leaves_the_others() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    script.fail(Op::Restore, 1);
    let children = sandbox.fork(3).await.unwrap();
    assert_eq!(children.iter().filter(|child| child.is_err()).count(), 1);
    assert_eq!(sandbox.state(), SandboxState::Running);
    assert!(matches!(sandbox.fork(0).await, Err(Error::InvalidInput { .. })));
    assert!(matches!(sandbox.fork(1001).await, Err(Error::InvalidInput { .. })));
}

#[tokio::test(start_paused = true)]
async fn few_children_start_at_once_and_one_that_hangs_gives_its_turn_to_others() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    script.take_log();
    let restores = |script: &Script| script.take_log().iter().filter(|op| **op == Op::Restore).count();
    script.slow(Op::Restore, Duration::from_millis(100));
    let mut children = sandbox.fork_stream(4 * TURNS).await.unwrap();
    let first = children.next().await.unwrap().unwrap();
    let begun = restores(&script);
    assert!((1..=2 * TURNS).contains(&begun), "{begun} had begun when the first was there");
    // Whoever asks meanwhile waits for some of them, and not for all.
    Sandbox::create(&host, "fake").await.unwrap();
    let begun = begun + restores(&script);
    assert!(begun < 4 * TURNS, "{begun} had begun when the one was there that came later");
    drop((first, children));

    script.hang(Op::Restore);
    let mut hanging = sandbox.fork_stream(2 * TURNS).await.unwrap();
    let one = tokio::time::timeout(Duration::from_secs(20), hanging.next()).await;
    assert!(one.is_err(), "they hang: {one:?}");
    script.take_log();
    let create = tokio::time::timeout(Duration::from_secs(20), Sandbox::create(&host, "fake")).await;
    assert!(create.is_err() && restores(&script) == 1, "it had no turn");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_another_vmm_is_refused_before_anything_starts() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    script.take_log();
    let generation = sandbox.snapshot("warm").await.unwrap();
    assert!(generation.is_snapshot());
    let state = Manifest { vmm: "fake 2".to_owned(), ..state_of_template(&host, "warm").await };
    let mut pending = host.0.site.store.begin(None).unwrap();
    pending.write_dirty(Space::Drive, &[1; PAGE_BYTES], &[PageRange::new(0, 1)]).unwrap();
    let other = pending.publish(&serde_json::to_vec(&state).unwrap()).unwrap();
    Template::name_snapshot(&host.0.site, &"other".parse().unwrap(), &other, &state.shape, &Defaults::default())
        .unwrap();
    script.take_log();
    let error = Sandbox::create(&host, "other").await.unwrap_err();
    assert!(matches!(error, Error::Host { .. }), "{error:?}");
    assert!(error.to_string().contains("fake 2"), "{error}");
    assert!(script.take_log().is_empty());
}

async fn state_of_template(host: &Host, name: &str) -> Manifest {
    let generation = Template::generation(&host.0.site, &name.parse().unwrap(), Wanted::default()).await;
    Manifest::of(&generation.unwrap().generation).unwrap()
}

/// The generations in a host's store, and the content of the newest record's memory.
fn stored(host: &Host, sandbox: &PausedSandbox) -> (usize, Vec<u8>) {
    let store = &host.0.site.store;
    let generation = store.load(sandbox.generation()).unwrap();
    let mut memory = vec![0; fake::PAGES * PAGE_BYTES];
    generation.reader(Space::Memory).unwrap().read_at(PageIndex(0), &mut memory).unwrap();
    (store.list().unwrap().len(), memory)
}

#[tokio::test]
async fn a_sandbox_that_is_paused_again_and_again_keeps_few_generations_and_every_byte() {
    let (_dir, host, _script) = fake_host().await;
    let mut sandbox = Sandbox::create(&host, "fake").await.unwrap();
    let mut model = vec![0; fake::PAGES * PAGE_BYTES];
    for number in 0..250_u8 {
        let page = usize::from(number) * PAGE_BYTES;
        model[page..page + PAGE_BYTES].fill(number);
        let paused = sandbox.pause().await.unwrap();
        let (generations, memory) = stored(&host, &paused);
        assert!(memory == model, "after pause {number}");
        // Half as many again as are due to be folded, and what came in vain of that, since these pauses are quick.
        assert!(generations <= 64 + 2 * 32 + 4, "{generations} after pause {number}");
        sandbox = paused.resume().await.unwrap();
    }
    let paused = sandbox.pause().await.unwrap();
    host.collect_garbage().await.unwrap();
    let (generations, _) = stored(&host, &paused);
    assert!(generations <= 64 + 32 + 4, "{generations}");
}

#[tokio::test]
async fn a_sandbox_that_forks_again_and_again_keeps_few_generations() {
    let (_dir, host, _script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    for _ in 0..150 {
        let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
        child.kill().await.unwrap();
    }
    let paused = sandbox.pause().await.unwrap();
    host.collect_garbage().await.unwrap();
    let (generations, memory) = stored(&host, &paused);
    assert!(generations <= 64 + 32 + 4, "{generations}");
    assert!((1..=150_u8).all(|number| memory[usize::from(number) * PAGE_BYTES] == number));
}
