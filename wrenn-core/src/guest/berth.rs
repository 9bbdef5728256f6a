//! What a guest is restored in: a network, a drive and a VMM, made when they are asked for or ahead of that.

use std::fs::File;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::timeout;
use wrenn_net::Gate;
use wrenn_snapshot::{Generation, PAGE_BYTES, Space};

use crate::error::{Error, Result};
use crate::free_memory::free;
use crate::guest::drive;
use crate::guest::manifest::Manifest;
use crate::image::Image;
use crate::network::slot::Network;
use crate::network::way_out::WayOut;
use crate::runtime::blocking;
use crate::site::Site;
use crate::vmm::identity::Identity;
use crate::vmm::parts::Parts;
use crate::vmm::standbys::{Berth, Engine, Kind, Next};

/// The kind of machine that a generation's guest has.
pub(super) fn kind_of(generation: &Generation, manifest: &Manifest) -> Kind {
    let pages = generation.space(Space::Drive).map_or(0, |space| space.pages);
    Kind {
        shape: manifest.shape.clone(),
        image: manifest.image.clone(),
        base_digest: manifest.base_digest.clone(),
        drive_bytes: u64::from(pages) * PAGE_BYTES as u64,
    }
}

/// A network for a guest of this kind, and all that its VMM is started with. `flat` is its memory, where that is a file.
pub(super) async fn prepare(site: &Arc<Site>, kind: &Kind, network: Network, flat: Option<File>) -> Result<Berth> {
    let Network { plug, connector, gate } = network;
    let (here, kind) = (Arc::clone(site), kind.clone());
    let open = move || {
        let base = Image::base_of_digest(here.data.path(), &kind.image, &kind.base_digest)?;
        let base = File::open(&base).map_err(Error::io("open", &base))?;
        let drive = drive::create(&here)?;
        // A VMM asks for the length when it opens it.
        drive.set_len(kind.drive_bytes).map_err(Error::io("make a drive in", here.data.path()))?;
        let theirs = drive.try_clone().map_err(Error::io("open", here.data.path()))?;
        Ok::<_, Error>((Parts { base, drive: theirs, plug, identity: Identity::reserve()?, flat }, drive))
    };
    let (parts, drive) = blocking("open the guest's files", open).await??;
    Ok(Berth { connector, gate, drive, engine: Engine::Parts(Box::new(parts)) })
}

/// Opens the way out of a guest where there is a gate to it.
pub(super) fn open_way_out(way_out: WayOut, gate: Option<Gate>) -> Result<Option<Arc<wrenn_net::Egress>>> {
    Ok(gate.map(|gate| way_out.open(gate)).transpose()?.map(Arc::new))
}

/// Notes that a guest of this kind was started: others of its kind may find a VMM that stands by.
pub(super) fn started(site: &Arc<Site>, kind: Kind) {
    if site.vmm.stands_by_for_any(site.memory.paging) && site.standbys.started(kind) {
        tokio::spawn(tend(Arc::downgrade(site)));
    }
}

/// Starts VMMs that stand by, as many as are wanted, until none is.
async fn tend(site: Weak<Site>) {
    let Some(changed) = site.upgrade().map(|site| site.standbys.changed()) else { return };
    loop {
        let Some(here) = site.upgrade() else { return };
        let pause = match here.standbys.next() {
            Next::Make(kind) => match make(&here, &kind).await {
                Ok(Some(berth)) => {
                    here.standbys.put(kind, berth);
                    continue;
                }
                Ok(None) => SHORT_OF_MEMORY,
                // Who needs it next starts one, and is told.
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "no VMM was started ahead");
                    AFTER_AN_ERROR
                }
            },
            Next::Wait(pause) => pause,
            Next::Over => return,
        };
        drop(here);
        // Either way it looks again.
        let _ = timeout(pause, changed.notified()).await;
    }
}

/// Starts one; `None` where the machine has little memory to spare.
async fn make(site: &Arc<Site>, kind: &Kind) -> Result<Option<Berth>> {
    let has_room = || free(std::path::Path::new("/")).is_none_or(|free| free.bytes >= SPARE_BYTES_MIN);
    if !blocking("look at the free memory", has_room).await? {
        return Ok(None);
    }
    let network = site.vmm.network(&site.network.slots).await?;
    let Berth { connector, gate, drive, engine } = prepare(site, kind, network, None).await?;
    let mut vmm = engine.started(&*site.vmm, &kind.shape, site.memory.paging).await?;
    vmm.stood_by();
    Ok(Some(Berth { connector, gate, drive, engine: Engine::Ready(vmm) }))
}

/// The same that is said of [`HostBuilder::standbys`](crate::HostBuilder::standbys).
const SPARE_BYTES_MIN: u64 = 512 << 20;
const SHORT_OF_MEMORY: Duration = Duration::from_secs(5);
const AFTER_AN_ERROR: Duration = Duration::from_secs(5);
