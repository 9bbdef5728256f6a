//! A machine, its network, its drive and its agent, as one thing: what a sandbox's task owns.
//!
//! ```text
//!  Guest::boot ─────▶ (running, not yet anybody's) ── capture ──▶ a template's generation
//!  Guest::restore ──▶ running ── capture(GoOn) ──▶ running, or after a failure halted ── go_on ──▶ running
//!                             ── capture(Stay) ──▶ halted ── kill
//! ```
//!
//! Each part undoes itself when it is dropped (the VMM dies, the namespace goes with its descriptors, the drive never had
//! a name), so a step that fails, or a future that is dropped, leaves nothing.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wrenn_envd::{GuestEventKind, InitRequest, Timestamp};
use wrenn_snapshot::{Generation, GenerationId, Space, WorkingSet};

use crate::agent::{AgentClient, Connector};
use crate::drive::{self, SavedDrive};
use crate::image::Image;
use crate::lineage::Lineage;
use crate::manifest::{Manifest, Surroundings};
use crate::step::Step;
use crate::vmm::{
    Acceleration, BootMedia, Exit, Identity, Machine, MachineShape, Metadata, Parts, Restore, STATE_BLOB, Saved,
};
use crate::{Error, Host, Paging, Result, SandboxId, TemplateName};

pub(crate) struct Guest {
    pub(crate) machine: Box<dyn Machine>,
    pub(crate) agent: Arc<AgentClient>,
    drive: Arc<File>,
    /// Keeps the network: the agent's client only borrows it.
    _connector: Arc<dyn Connector>,
    /// The generation that it was restored from.
    restored_from: Option<GenerationId>,
    /// What the guest's memory and drive were last equal to; `None` for one that was booted and not captured yet.
    lineage: Option<Lineage>,
    pub(crate) manifest: Manifest,
    halted: bool,
    save_report: Option<SaveReport>,
}

/// What becomes of a guest that is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It is not needed any more.
    Stay,
    /// It goes on as soon as nothing of it has to be read: memory is copied while it runs, and made durable afterwards.
    GoOn,
}

/// What a fork or a snapshot took of its sandbox's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveReport {
    /// How long the virtual machine stood still.
    pub stopped_for: Duration,
    /// How long its processes did: the same, and telling the guest before and after.
    pub frozen_for: Duration,
    /// Memory in bytes that was copied when it ran again, as it had been at the stop: what it had written since it was
    /// last looked at, where that was too much to copy in the stop.
    pub held_bytes: u64,
}

/// What a restored guest becomes.
#[derive(Debug, Clone)]
pub(crate) struct Renewal {
    pub(crate) id: SandboxId,
    pub(crate) template: TemplateName,
    /// How it comes to be, for the guest's hooks and clients.
    pub(crate) event: GuestEventKind,
    /// Replaces the environment of processes that are started from now on; `None` keeps it.
    pub(crate) envs: Option<std::collections::BTreeMap<String, String>>,
}

impl Guest {
    /// Boots an image to its agent. The guest has no identity yet, so that every restore gives it one.
    pub(crate) async fn boot(host: &Host, image: &Image, shape: MachineShape) -> Result<Self> {
        let open = |path: &Path| File::open(path).map_err(Error::io("open", path));
        let media = BootMedia { kernel: open(&image.kernel())?, initramfs: open(&image.initramfs())? };
        let template = open(&image.drive_template())?;
        let drive = drive::create(host)?;
        let filled = drive.try_clone().map_err(Error::io("open", host.data_dir()))?;
        let copied = blocking("copy the drive's template", move || drive::copy_sparse(&template, &filled)).await?;
        copied.map_err(Error::io("write a drive in", host.data_dir()))?;
        let network = host.0.vmm.network().await?;
        let parts = Parts {
            base: open(&image.base())?,
            drive: drive.try_clone().map_err(Error::io("open", host.data_dir()))?,
            plug: network.plug,
            identity: Identity::ephemeral(shape.acceleration),
        };
        let manifest = Manifest {
            vmm: host.0.vmm.version().to_owned(),
            shape,
            made_on: Surroundings::here().clone(),
            image: image.name().to_owned(),
            base_digest: image.base_digest().to_owned(),
            guest_kernel: image.kernel_release().to_owned(),
            token: None,
        };
        let machine = host.0.vmm.boot(&manifest.shape, parts, media).await?;
        let agent = Arc::new(AgentClient::new(Arc::downgrade(&network.connector), None));
        let (drive, _connector) = (Arc::new(drive), network.connector);
        let guest = Self {
            machine,
            agent,
            drive,
            _connector,
            restored_from: None,
            lineage: None,
            manifest,
            halted: false,
            save_report: None,
        };
        guest.alive("boot the template", guest.settle()).await?;
        Ok(guest)
    }

    /// Waits for a booted agent, and puts into memory what every sandbox will want first.
    async fn settle(&self) -> Result<()> {
        if let Err(source) = self.agent.wait_ready(BOOT_TIMEOUT).await {
            let console = self.machine.console().tail(12);
            return Err(Error::BootTimedOut { after: BOOT_TIMEOUT, console, source });
        }
        let init = InitRequest { default_user: Some(USER.to_owned()), ..Self::clock() };
        self.agent.init(&init).await.map_err(Error::agent("be initialised"))?;
        for warm_up in WARM_UPS {
            let spec = crate::command::shell_spec(warm_up);
            crate::command::collect(&self.agent, spec, Some(BOOT_TIMEOUT), 1 << 20).await?;
        }
        Ok(())
    }

    /// Makes a guest of a generation: lazily, and as somebody new.
    pub(crate) async fn restore(host: &Host, from: Generation, renewal: &Renewal) -> Result<Self> {
        let step = |step| host.0.observer.at(step);
        let mut manifest = Manifest::of(&from)?;
        manifest.check_restorable(host)?;
        step(Step::Slot)?;
        let network = host.0.vmm.network().await?;
        let base = Image::base_of_digest(host.data_dir(), &manifest.image, &manifest.base_digest)?;
        let drive = drive::create(host)?;
        let parts = Parts {
            base: File::open(&base).map_err(Error::io("open", &base))?,
            drive: drive.try_clone().map_err(Error::io("open", host.data_dir()))?,
            plug: network.plug,
            identity: Identity::ephemeral(manifest.shape.acceleration),
        };
        step(Step::Machine)?;
        let fill = drive::fill(host, from.clone(), &drive);
        let restore = Restore {
            generation: from.clone(),
            paging: host.0.paging,
            working_set: match host.0.paging {
                Paging::Lazy | Paging::Populate => working_set(host, from.id()),
                Paging::OnDemand | Paging::Eager | Paging::Mapped => None,
            },
            flat: match host.0.paging {
                Paging::Mapped => Some(crate::flat::memory(host, &from).await?),
                Paging::Lazy | Paging::Populate | Paging::OnDemand | Paging::Eager => None,
            },
        };
        let started = host.0.vmm.restore(&manifest.shape, parts, restore);
        // The drive is filled while the VMM starts.
        let (machine, ()) = tokio::try_join!(started, fill)?;
        let agent = Arc::new(AgentClient::new(Arc::downgrade(&network.connector), manifest.token.clone()));
        let token = fresh_token();
        manifest.token = Some(token.clone());
        let metadata = Metadata { sandbox: renewal.id.clone(), template: renewal.template.clone(), token };
        let (drive, _connector) = (Arc::new(drive), network.connector);
        let restored_from = Some(from.id());
        let (lineage, halted, save_report) = (None, false, None);
        let mut guest =
            Self { machine, agent, drive, _connector, restored_from, lineage, manifest, halted, save_report };
        guest.machine.describe(&metadata).await?;
        step(Step::Run)?;
        guest.machine.resume().await?;
        step(Step::Agent)?;
        guest.alive("restore the guest", guest.renew(renewal)).await?;
        // Last, since it may begin to compact, which the restore shall not wait for.
        let lineage = guest.lineage.insert(Lineage::new(from, Some(renewal.id.clone())));
        lineage.shorten(host);
        Ok(guest)
    }

    /// Everything that must differ between two guests of one generation, before any of their processes runs: the
    /// agent thaws them when it has done this.
    async fn renew(&self, renewal: &Renewal) -> Result<()> {
        let token = self.manifest.token.clone();
        let init = InitRequest {
            access_token: token.clone(),
            env_vars: renewal.envs.clone(),
            instance_id: Some(renewal.id.to_string()),
            env_id: Some(renewal.template.to_string()),
            event: Some(renewal.event),
            entropy: Some(rand::random::<[u8; 64]>().to_vec()),
            hostname: Some(renewal.id.to_string()),
            machine_id: Some(format!("{:032x}", rand::random::<u128>())),
            ..Self::clock()
        };
        self.agent.init_within(&init, RENEW_TIMEOUT).await.map_err(Error::agent("renew its guest"))?;
        self.agent.set_token(token);
        Ok(())
    }

    fn clock() -> InitRequest {
        InitRequest { timestamp: Some(Timestamp::now()), ..InitRequest::default() }
    }

    /// Publishes a generation of the guest as it is at one instant. Afterwards, and after a failure, the guest is
    /// stopped if [`is_halted`](Self::is_halted) says so: [`go_on`](Self::go_on) or [`kill`](Self::kill) comes next.
    pub(crate) async fn capture(&mut self, host: &Host, then: Then) -> Result<Generation> {
        let parent = match &mut self.lineage {
            Some(lineage) => Some(lineage.parent().await),
            None => None,
        };
        let store = host.0.store.clone();
        let begin = move || {
            let pending = store.begin(parent.as_ref())?;
            let [memory, drive] = [pending.space_writer(Space::Memory)?, pending.space_writer(Space::Drive)?];
            Ok::<_, Error>((pending, memory, drive))
        };
        let (mut pending, mut memory, drive_writer) = blocking("begin a snapshot", begin).await??;
        if then == Then::GoOn {
            drive::write_ahead(Arc::clone(&self.drive), host.data_dir().to_owned()).await?;
            memory = self.machine.save_ahead(memory).await?;
        }
        let began = Instant::now();
        self.halt().await?;
        let stopped = Instant::now();
        let drive = SavedDrive::of(Arc::clone(&self.drive), host.data_dir().to_owned(), drive_writer, then);
        // Both to their ends: a machine whose saving was cut short could not go on.
        let (saved, drive) = tokio::join!(self.machine.save(memory), drive);
        let (Saved { memory, state }, drive) = (saved?, drive?);
        // From here on nothing of the guest is read: what remains is to store it, and to make that durable.
        let stopped_for = stopped.elapsed();
        if then == Then::GoOn {
            self.go_on().await?;
        }
        let held_bytes = memory.held_bytes();
        self.save_report = Some(SaveReport { stopped_for, frozen_for: began.elapsed(), held_bytes });
        let metadata = serde_json::to_vec(&self.manifest).map_err(|e| Error::failed("describe the guest")(e.into()))?;
        let publish = move || {
            pending.write_blob(STATE_BLOB, &state)?;
            pending.seal(memory.finish()?)?;
            pending.seal(drive.finish()?)?;
            Ok::<_, Error>(pending.publish(&metadata)?)
        };
        let generation = blocking("publish the snapshot", publish).await??;
        self.machine.saved();
        self.hand_on_working_set(host, generation.id());
        match &mut self.lineage {
            Some(lineage) => lineage.go_on_from(generation.clone()),
            None => self.lineage = Some(Lineage::new(generation.clone(), None)),
        }
        if let (Some(lineage), Then::GoOn) = (&mut self.lineage, then) {
            lineage.shorten(host);
        }
        Ok(generation)
    }

    /// Freezes the guest's processes, so that none runs in a copy before it is somebody of its own, and stops it.
    async fn halt(&mut self) -> Result<()> {
        self.halted = true;
        let freeze = self.agent.freeze();
        self.alive("freeze the guest", async { freeze.await.map_err(Error::agent("freeze its processes")) }).await?;
        self.machine.stop().await
    }

    /// Whether the guest stands still, or may.
    pub(crate) fn is_halted(&self) -> bool {
        self.halted
    }

    /// Whether it leaves generations to collect, once what it was captured in is recorded.
    pub(crate) fn leaves_garbage(&self) -> bool {
        self.lineage.as_ref().is_some_and(Lineage::leaves_garbage)
    }

    /// How long the last capture took of the guest's time.
    pub(crate) fn save_report(&self) -> Option<SaveReport> {
        self.save_report
    }

    /// Lets a guest that was halted go on as itself.
    pub(crate) async fn go_on(&mut self) -> Result<()> {
        self.machine.resume().await?;
        let thaw = self.agent.thaw();
        self.alive("thaw the guest", async { thaw.await.map_err(Error::agent("thaw its processes")) }).await?;
        self.halted = false;
        Ok(())
    }

    /// Keeps what the guest touched for the next restore of the same generation, which nobody kept before.
    pub(crate) fn keep_working_set(&self, host: &Host) {
        let Some(from) = &self.restored_from else { return };
        let path = working_set_path(host, *from);
        let Some(touched) = self.machine.working_set().filter(|touched| !touched.is_empty() && !path.exists()) else {
            return;
        };
        if let Err(error) = touched.store(&path) {
            tracing::debug!(error = &error as &dyn std::error::Error, "the working set was not kept");
        }
    }

    /// What was touched after one restore is what will be touched after the next, of the same guest a little later.
    fn hand_on_working_set(&self, host: &Host, to: GenerationId) {
        self.keep_working_set(host);
        let Some(touched) = self.restored_from.and_then(|from| working_set(host, from)) else { return };
        if let Err(error) = touched.store(&working_set_path(host, to)) {
            tracing::debug!(error = &error as &dyn std::error::Error, "the working set was not handed on");
        }
    }

    /// Ends the VM, and lets go of what it depended on.
    pub(crate) async fn kill(&mut self) {
        self.agent.close();
        self.machine.kill().await;
        self.lineage = None;
    }

    /// Does `work`, or fails at once when the VM ends meanwhile.
    async fn alive<T>(&self, during: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut exited = self.machine.exited();
        tokio::select! {
            result = work => result,
            exit = exited.wait_for(Option::is_some) => {
                let exit = exit.ok().and_then(|exit| exit.as_ref().map(Exit::to_string)).unwrap_or_default();
                Err(Error::VmEnded { during, exit, console: self.machine.console().tail(12) })
            }
        }
    }
}

impl Identity {
    /// A user of this VMM alone, so that one VMM can neither trace nor signal another. `None` where the program has no
    /// right to change users.
    fn ephemeral(acceleration: Acceleration) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            return None;
        }
        let id = EPHEMERAL_UID_MIN + rand::random::<u32>() % EPHEMERAL_UIDS;
        let kvm = std::fs::metadata("/dev/kvm").ok().filter(|_| acceleration == Acceleration::Kvm);
        // QEMU opens the device itself, by the rights of its group.
        Some(Self { uid: id, gid: kvm.map_or(id, |kvm| kvm.gid()) })
    }
}

/// Above the ids that Debian, systemd (to 1,879,048,191) and user namespaces hand out.
const EPHEMERAL_UID_MIN: u32 = 1_900_000_000;
const EPHEMERAL_UIDS: u32 = 1 << 24;

/// The user that the base image has for commands.
const USER: &str = "user";
/// A boot takes 3 s under emulation on an idle machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// A restored agent answers in tens of milliseconds; the rest is for a machine under load.
const RENEW_TIMEOUT: Duration = Duration::from_secs(30);
/// Their pages are then in every template's page cache.
const WARM_UPS: [&str; 2] =
    ["true", "command -v python3 >/dev/null && python3 -c 'import json, os, random, socket, subprocess, uuid' || true"];

fn fresh_token() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}

/// Beside the files of its generation, and gone with them.
fn working_set_path(host: &Host, generation: GenerationId) -> PathBuf {
    host.0.store.root().join(generation.to_string()).join("working-set")
}

/// It is a hint: without it, or with a damaged one, pages come in as they are touched.
fn working_set(host: &Host, generation: GenerationId) -> Option<WorkingSet> {
    WorkingSet::load(&working_set_path(host, generation)).unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "the working set is not used");
        None
    })
}

/// Runs blocking work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::failed(what)(e.into()))
}
