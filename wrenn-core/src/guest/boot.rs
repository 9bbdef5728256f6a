//! The boot of an image, up to a running agent. The booted guest has no sandbox's identity.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wrenn_envd::InitRequest;
use wrenn_net::NAMESERVER;

use crate::agent::client::AgentClient;
use crate::defaults::Defaults;
use crate::error::{Error, Result};
use crate::exec::collect::{collect, shell_spec};
use crate::guest::berth::open_way_out;
use crate::guest::manifest::{Manifest, Surroundings};
use crate::guest::{Guest, drive};
use crate::image::Image;
use crate::network::slot::Network;
use crate::patience::patient;
use crate::runtime::blocking;
use crate::site::Site;
use crate::vmm::identity::Identity;
use crate::vmm::parts::{BootMedia, Parts};
use crate::vmm::phases::RestoreSteps;
use crate::vmm::shape::MachineShape;

impl Guest {
    /// Boots an image until its agent runs. The guest has no identity yet: every restore of it gives one.
    pub(crate) async fn boot(site: &Arc<Site>, image: &Image, shape: MachineShape) -> Result<Self> {
        let (here, files) = (Arc::clone(site), image.clone());
        let Files { media, base, drive } =
            blocking("open the image's files", move || Files::open(&here, &files)).await??;
        let Network { plug, connector, gate } = site.vmm.network(&site.network.slots).await?;
        let egress = open_way_out(site.network.closed(), gate)?;
        let parts = Parts {
            base,
            drive: drive.try_clone().map_err(Error::io("open", site.data.path()))?,
            plug,
            identity: Identity::reserve()?,
            flat: None,
        };
        let manifest = Manifest {
            vmm: site.vmm.version().to_owned(),
            shape,
            made_on: Surroundings::here().clone(),
            image: image.name().to_owned(),
            base_digest: image.base_digest().to_owned(),
            token: None,
            connections: Vec::new(),
        };
        let machine = site.vmm.boot(&manifest.shape, parts, media).await?;
        let agent = Arc::new(AgentClient::new(Arc::downgrade(&connector), None));
        let guest = Self {
            machine,
            agent,
            drive: Arc::new(drive),
            _connector: connector,
            _share: None,
            egress,
            restored_from: None,
            lineage: None,
            manifest,
            halted: false,
            save_report: None,
            steps: RestoreSteps::default(),
        };
        guest.alive("boot the template", guest.settle(image.defaults())).await?;
        Ok(guest)
    }

    /// Waits for the booted agent, and runs what every sandbox runs first, so that its files are in the guest's page
    /// cache.
    async fn settle(&self, defaults: &Defaults) -> Result<()> {
        if let Err(source) = self.agent.wait_ready(patient(BOOT_TIMEOUT)).await {
            let console = self.machine.console().tail(12);
            return Err(Error::BootTimedOut { after: patient(BOOT_TIMEOUT), console, source });
        }
        let nameservers = Some(vec![NAMESERVER.into()]);
        let (default_user, default_workdir) = (defaults.user.clone(), defaults.workdir.clone());
        let env_vars = Some(defaults.env.clone());
        let init = InitRequest { env_vars, default_user, default_workdir, nameservers, ..Self::clock() };
        self.agent.init(&init).await.map_err(Error::agent("be initialised"))?;
        for warm_up in WARM_UPS {
            let spec = shell_spec(warm_up);
            match collect(&self.agent, spec, Some(patient(BOOT_TIMEOUT)), 1 << 20).await {
                // An image may have no shell.
                Err(Error::NotFound { .. }) => {}
                warmed => drop(warmed?),
            }
        }
        Ok(())
    }
}

/// The files that a boot opens, and the drive that it fills.
struct Files {
    media: BootMedia,
    base: File,
    drive: File,
}

impl Files {
    /// Blocks.
    fn open(site: &Arc<Site>, image: &Image) -> Result<Self> {
        let open = |path: &Path| File::open(path).map_err(Error::io("open", path));
        let media = BootMedia { kernel: open(&image.kernel())?, initramfs: open(&image.initramfs())? };
        let drive = drive::create(site)?;
        let copied = drive::copy_sparse(&open(&image.drive_template())?, &drive);
        copied.map_err(Error::io("write a drive in", site.data.path()))?;
        Ok(Self { media, base: open(&image.base())?, drive })
    }
}

/// A boot takes 3 s under emulation on an idle machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// Commands whose files are then in every template's page cache.
const WARM_UPS: [&str; 2] =
    ["true", "command -v python3 >/dev/null && python3 -c 'import json, os, random, socket, subprocess, uuid' || true"];
