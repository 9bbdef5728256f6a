//! What a host keeps, with a fake VMM: names, records and generations, whatever else goes on beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::lifecycle_tests::fake_host;
use crate::defaults::Defaults;
use crate::error::Error;
use crate::host::filter::SandboxFilter;
use crate::host::handle::Host;
use crate::image::Image;
use crate::sandbox::boots;
use crate::sandbox::handle::Sandbox;
use crate::site::data_dir::DataDir;
use crate::site::record;
use crate::site::records::TemplateRecord;
use crate::state::SandboxState;
use crate::vmm::fake::Op;
use crate::vmm::shape::{Acceleration, MachineShape};

#[tokio::test]
async fn a_fork_is_stored_whatever_keeps_its_sandbox_from_going_on() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    let generations = || host.0.site.store.list().unwrap().len();
    let before = generations();
    script.hang(Op::Resume);
    let forking = tokio::spawn(async move { sandbox.fork(1).await });
    let began = Instant::now();
    while generations() == before {
        assert!(began.elapsed() < Duration::from_secs(20), "nothing is stored before the sandbox goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    forking.abort();
}

#[tokio::test]
async fn of_two_snapshots_under_one_name_one_is_refused() {
    let (_dir, host, _script) = fake_host().await;
    let one = Sandbox::create(&host, "fake").await.unwrap();
    let other = Sandbox::create(&host, "fake").await.unwrap();
    let (first, second) = tokio::join!(one.snapshot("warm"), other.snapshot("warm"));
    let refused = [first, second].into_iter().filter_map(Result::err).collect::<Vec<_>>();
    assert!(matches!(&*refused, [Error::AlreadyExists { .. }]), "{refused:?}");
    assert_eq!((one.state(), other.state()), (SandboxState::Running, SandboxState::Running));
    Sandbox::create(&host, "warm").await.unwrap();
}

#[tokio::test]
async fn a_snapshot_is_replaced_by_one_that_is_there() {
    let (_dir, host, script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    let first = sandbox.replace_snapshot("warm").await.unwrap();
    let of_first = Sandbox::create(&host, "warm").await.unwrap();
    let second = sandbox.replace_snapshot("warm").await.unwrap();
    assert_ne!(first.created_at(), second.created_at());
    host.collect_garbage().await.unwrap();
    let of_second = Sandbox::create(&host, "warm").await.unwrap();
    assert_eq!((of_first.state(), of_second.state()), (SandboxState::Running, SandboxState::Running));
    script.fail(Op::Save, 1);
    sandbox.replace_snapshot("warm").await.unwrap_err();
    Sandbox::create(&host, "warm").await.unwrap();
    let refused = of_first.snapshot("warm").await.unwrap_err();
    assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused}");
}

#[tokio::test]
async fn what_is_kept_for_some_is_counted_once() {
    let (_dir, host, _script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    let (id, name) = (sandbox.id().clone(), "warm".parse().unwrap());
    assert_eq!(host.stored_bytes(std::slice::from_ref(&id), &[name]).await.unwrap(), 0, "nothing is on disk");
    sandbox.snapshot("warm").await.unwrap();
    let name = "warm".parse().unwrap();
    let snapshot = host.stored_bytes(&[], std::slice::from_ref(&name)).await.unwrap();
    sandbox.pause().await.unwrap();
    let paused = host.stored_bytes(std::slice::from_ref(&id), &[]).await.unwrap();
    let both = host.stored_bytes(&[id.clone(), id.clone()], &[name]).await.unwrap();
    assert!(snapshot > 0 && paused > 0 && both >= paused && both <= snapshot + paused, "{snapshot} {paused} {both}");
    host.paused(&id).await.unwrap().delete().await.unwrap();
    assert_eq!(host.stored_bytes(&[id], &[]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_kill_does_not_wait_for_a_collection() {
    let (dir, host, _script) = fake_host().await;
    let sandbox = Sandbox::create(&host, "fake").await.unwrap();
    let collecting = DataDir::create(dir.path()).unwrap().try_lock("collect").unwrap();
    tokio::time::timeout(Duration::from_secs(20), sandbox.kill()).await.expect("the kill waits").unwrap();
    drop(collecting);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lists_hinders_nobody_and_is_not_deceived() {
    let (_dir, host, _script) = fake_host().await;
    let kept = Sandbox::create(&host, "fake").await.unwrap().pause().await.unwrap();
    let lister = || {
        let (host, id) = (host.clone(), kept.id().clone());
        tokio::spawn(async move {
            for _ in 0..200 {
                let infos = host.sandboxes(&SandboxFilter::new()).await.unwrap();
                let info = infos.into_iter().find(|info| info.id == id).unwrap();
                assert_eq!(info.state, SandboxState::Paused);
            }
        })
    };
    let (one, other) = tokio::join!(lister(), lister());
    one.and(other).unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let listing = tokio::spawn({
        let (host, stop) = (host.clone(), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                host.sandboxes(&SandboxFilter::new()).await.unwrap();
            }
        }
    });
    for attempt in 0..300 {
        let lock = host.0.site.data.try_lock(kept.id().as_str()).unwrap();
        assert!(lock.is_some(), "attempt {attempt}: somebody who only looks has the lock");
        drop(lock);
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    listing.await.unwrap();
}

#[tokio::test]
async fn a_half_deleted_former_image_is_passed_over() {
    let (dir, host, _script) = fake_host().await;
    std::fs::create_dir(dir.path().join("images/base@0123456789ab")).unwrap();
    let whole = std::fs::read(dir.path().join("images/base/image.json")).unwrap();
    let without_base = dir.path().join("images/base@00");
    std::fs::create_dir(&without_base).unwrap();
    std::fs::write(without_base.join("image.json"), whole).unwrap();
    Sandbox::create(&host, "fake").await.unwrap();
}

#[tokio::test]
async fn a_record_that_cannot_be_read_stops_nothing_else() {
    let (dir, host, _script) = fake_host().await;
    let kept = Sandbox::create(&host, "fake").await.unwrap().pause().await.unwrap();
    let torn = Sandbox::create(&host, "fake").await.unwrap().pause().await.unwrap();
    let doomed = Sandbox::create(&host, "fake").await.unwrap().pause().await.unwrap();
    let path = dir.path().join(format!("sandboxes/{}.json", torn.id()));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.trim_end().trim_end_matches('}')).unwrap();
    std::fs::write(dir.path().join("sandboxes/copy of one.json"), &text).unwrap();
    std::fs::write(dir.path().join("templates/UPPER.json"), &text).unwrap();
    let (torn, gone) = (torn.generation(), doomed.generation());
    doomed.delete().await.unwrap();
    assert!(host.sandboxes(&SandboxFilter::new()).await.unwrap().iter().any(|info| info.id == *kept.id()));
    host.templates().await.unwrap();
    host.collect_garbage().await.unwrap();
    let damaged: Vec<_> = host.damaged_records().await.unwrap().into_iter().map(|damaged| damaged.path).collect();
    let expected = ["sandboxes/copy of one.json", "templates/UPPER.json"].map(|name| dir.path().join(name));
    assert_eq!(damaged.len(), 3, "{damaged:?}");
    assert!(expected.iter().chain([&path]).all(|path| damaged.contains(path)), "{damaged:?}");
    assert_eq!(crate::site::survey::damaged_in(dir.path()).unwrap().len(), 3, "what the doctor says");
    let left = host.0.site.store.list().unwrap();
    assert!(left.contains(&torn) && left.contains(&kept.generation()) && !left.contains(&gone), "{left:?}");
}

#[tokio::test]
async fn a_record_whose_generation_is_gone_is_named_and_stops_no_collection() {
    let (dir, host, _script) = fake_host().await;
    let dangling = Sandbox::create(&host, "fake").await.unwrap().pause().await.unwrap();
    let doomed = Sandbox::create(&host, "fake").await.unwrap().pause().await.unwrap();
    std::fs::remove_dir_all(dir.path().join("generations").join(dangling.generation().to_string())).unwrap();
    let gone = doomed.generation();
    doomed.delete().await.unwrap();
    host.collect_garbage().await.unwrap();
    let damaged = host.damaged_records().await.unwrap();
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert!(damaged[0].path.ends_with(format!("sandboxes/{}.json", dangling.id())), "{damaged:?}");
    dangling.delete().await.unwrap();
    host.collect_garbage().await.unwrap();
    assert!(!host.0.site.store.list().unwrap().contains(&gone));
    assert!(host.damaged_records().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_kill_leaves_is_collected_without_being_asked_for() {
    let (_dir, host, _script) = fake_host().await;
    let paused = Sandbox::create(&host, "fake").await.unwrap().pause().await.unwrap();
    let generation = paused.generation();
    paused.resume().await.unwrap().kill().await.unwrap();
    let began = Instant::now();
    while host.0.site.store.list().unwrap().contains(&generation) {
        assert!(began.elapsed() < Duration::from_secs(20), "nothing was collected");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn any_number_of_creates_wait_for_a_boot_and_leave_room_for_other_work() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).max_blocking_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        let (dir, host, _script) = fake_host().await;
        write_whole_image(&dir);
        let key = booting_key(&host);
        let booting = host.0.site.data.try_lock(&format!("boot-{key}")).unwrap().expect("nobody boots");
        let creates: Vec<_> = (0..5)
            .map(|_| {
                let host = host.clone();
                tokio::spawn(async move { Sandbox::create(&host, "base").await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let other = tokio::task::spawn_blocking(|| ());
        let done = tokio::time::timeout(Duration::from_secs(10), other).await;
        drop(booting);
        done.expect("no thread is left").unwrap();
        for create in creates {
            // The fake restores only: each of them had its turn to boot.
            let error = create.await.unwrap().unwrap_err();
            assert!(error.to_string().contains("boot"), "{error}");
        }
    });
}

/// An image that opens.
fn write_whole_image(dir: &tempfile::TempDir) -> Image {
    let images = dir.path().join("images/base");
    let path = images.join("image.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for file in ["vmlinuz", "initramfs", "drive.ext4"] {
        std::fs::write(images.join(file), "").unwrap();
        manifest["files"][file] = manifest["files"]["base.ext4"].clone();
    }
    // Nobody is to look into its initramfs.
    manifest["own_agent"] = true.into();
    std::fs::write(&path, manifest.to_string()).unwrap();
    Image::open(dir.path(), "base").unwrap()
}

fn booting_key(host: &Host) -> String {
    let site = &host.0.site;
    let image = Image::open(site.data.path(), "base").unwrap();
    let shape = MachineShape { vcpus: 1, memory_mib: 512, acceleration: Acceleration::Tcg, tsc_khz: None };
    boots::boot_key(site, &image, &shape)
}

#[tokio::test]
async fn of_an_images_boots_those_used_last_are_kept() {
    let (dir, host, _script) = fake_host().await;
    let site = &host.0.site;
    let key = |content: &str, memory_mib: u32| format!("base-1c-{memory_mib}m-fake-1-tcg-{content}");
    let generation = Sandbox::create(&host, "fake").await.unwrap().pause().await.unwrap().generation();
    let shape = MachineShape { vcpus: 1, memory_mib: 512, acceleration: Acceleration::Tcg, tsc_khz: None };
    let boot = TemplateRecord { generation, shape, created_at_ms: 0, defaults: Defaults::default() };
    let started = std::time::SystemTime::now() - Duration::from_secs(1000);
    let image = write_whole_image(&dir);
    let current = &image.digest()[..16];
    for memory_mib in 0..12_u32 {
        let path = site.data.booted().join(format!("{}.json", key(current, memory_mib)));
        record::write(&path, &boot).unwrap();
        let used = started + Duration::from_secs(u64::from(memory_mib));
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(used).unwrap();
    }
    for other in [key("0123456789abcdef", 512), format!("base-2-1c-512m-fake-1-tcg-{current}")] {
        record::write(&site.data.booted().join(format!("{other}.json")), &boot).unwrap();
    }
    // The oldest one is used, and number 3 has just been booted, whatever the clock says.
    let oldest = site.data.booted().join(format!("{}.json", key(current, 0)));
    boots::find(site, &oldest).await.unwrap().unwrap();
    boots::forget_boots(site, &image, &key(current, 3)).unwrap();
    let left = record::stems(&site.data.booted()).unwrap();
    let mut expected: Vec<String> = [0, 3, 6, 7, 8, 9, 10, 11].map(|memory_mib| key(current, memory_mib)).to_vec();
    expected.push(format!("base-2-1c-512m-fake-1-tcg-{current}"));
    expected.sort();
    assert_eq!(left, expected);
}

#[tokio::test]
async fn a_listing_has_what_its_filter_admits_and_all_that_is_known_of_it() {
    let (_dir, host, _script) = fake_host().await;
    let create = |who: &str| Sandbox::builder(&host, "fake").label("who", who).label("all", "yes").create();
    let running = create("ada").await.unwrap();
    let paused = create("bob").await.unwrap().pause().await.unwrap();
    let ids = async |filter: SandboxFilter| {
        let infos = host.sandboxes(&filter).await.unwrap();
        infos.into_iter().map(|info| info.id).collect::<Vec<_>>()
    };
    let all = SandboxFilter::new().label("all", "yes");
    assert_eq!(ids(all.clone()).await.len(), 2);
    assert_eq!(ids(all.clone().state(SandboxState::Running)).await, [running.id().clone()]);
    assert_eq!(ids(all.clone().label("who", "bob")).await, [paused.id().clone()]);
    assert_eq!(ids(all.clone().template("fake".parse().unwrap())).await.len(), 2);
    assert!(ids(all.template("other".parse().unwrap())).await.is_empty());

    let info = host.sandboxes(&SandboxFilter::new().label("who", "bob")).await.unwrap().remove(0);
    assert_eq!(info, paused.info());
    assert!(info.paused_at.unwrap() >= info.created_at && info.stored_bytes.unwrap() > 0);
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!((&json["state"], &json["labels"]["who"]), (&"paused".into(), &"bob".into()));
    assert!(json["created_at_ms"].as_u64().unwrap() > 1_700_000_000_000, "{json}");

    let metrics = host.metrics().await.unwrap();
    // The snapshot that the host has, and the image under it.
    assert_eq!((metrics.running, metrics.paused, metrics.templates, metrics.damaged_records), (1, 1, 2, 0));
    assert!(metrics.generations >= 2 && metrics.stored_bytes > 0 && metrics.free_bytes > 0, "{metrics:?}");
}
