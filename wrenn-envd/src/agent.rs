//! The agent: init of the guest, and the server in it.
//!
//! ```text
//!  main -> init::boot (PID 1 only) -> serve -> http::Server::answer --+-> process::Service, filesystem::Service   (Connect, gRPC)
//!                                                                     +-> files, setup, metrics  (plain HTTP)
//! ```

mod admission;
mod answer;
mod api_error;
mod authorities;
mod cgroups;
mod clock;
mod console;
mod disk;
mod drive;
mod environment;
mod events;
mod files;
mod filesystem;
mod freezer;
mod guest_path;
mod hooks;
mod http;
mod identity;
mod init;
mod keepalive;
mod lifecycle;
mod locale;
mod metrics;
mod mmds;
mod options;
mod ports;
mod process;
mod settings;
mod setup;
mod sys;
mod threads;
mod users;

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use admission::Admission;
use cgroups::Groups;
use console::{complain, note};
use drive::Drive;
use events::Events;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use files::fuzz;
use freezer::Freezer;
use hooks::Hooks;
use lifecycle::Lifecycle;
use mmds::Mmds;
pub use options::{Mode, Options};
use tokio::{net::TcpListener, sync::watch};

/// Boots the guest when the mode says so, then serves for ever.
///
/// # Errors
///
/// Only where the agent cannot start to serve. As [`Mode::Guest`], a failed boot switches the machine off instead.
pub fn run(mut options: Options) -> io::Result<()> {
    let mut drive = options.drive.as_ref().map(File::open).transpose()?.map(OwnedFd::from);
    if options.mode == Mode::Guest {
        match init::boot() {
            Ok(booted) => {
                options.publish = booted.address.map(IpAddr::from);
                options.host = booted.host.map(IpAddr::from);
                options.hooks = Some(PathBuf::from("/etc/wrenn/hooks"));
                options.mmds = booted.has_mmds.then_some((MMDS_ADDRESS, 80).into());
                drive = Some(booted.drive);
            }
            Err(error) => {
                init::give_up(&error);
                // The kernel panics when PID 1 ends, which is the next best way to tell the host.
                return Err(io::Error::other(error));
            }
        }
    }
    // Before there is another thread.
    process::block_child_signals()?;
    // One thread is enough for what an agent does, and what it does not touch need not be in a snapshot.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .build()?
        .block_on(serve(options, drive))
}

async fn serve(options: Options, drive: Option<OwnedFd>) -> io::Result<()> {
    let Options { mode, address, cgroup, publish, hooks, host, mmds, .. } = options;
    let listener = TcpListener::bind(address).await?;
    if mode == Mode::Hosted {
        // Orphans come here, as they come to PID 1. Where they do not, they are somebody else's to reap.
        let _ = nix::sys::prctl::set_child_subreaper(true);
    }
    let groups = Arc::new(make_groups(mode, cgroup.as_deref()));
    let table = Arc::new(process::Table::new(kept_bytes_max(&fs::read_to_string("/proc/meminfo").unwrap_or_default())));
    let (reaper, emptied) = (table.clone(), groups.clone());
    tokio::spawn(async move {
        let complain = |error: &io::Error| complain(&format!("reap children: {error}"));
        reaper.reap_for_ever(|| emptied.sweep(), complain).await
    });
    let restores = watch::Sender::new(0);
    if let Some(address) = publish {
        tokio::spawn(ports::publish(address, restores.subscribe()));
    }
    let lifecycle = Lifecycle {
        freezer: Arc::new(Freezer::new(groups.sandbox())),
        hooks: Hooks { directory: hooks, table },
        drive: Drive::new(drive)?,
        events: Events::new(),
        restores,
    };
    let mmds = mmds.map(|address| Mmds { address });
    let server = http::Server::new(mode, mmds, Admission::new(host), groups, lifecycle);
    let serving = format!("serving on {}", listener.local_addr()?);
    if mode == Mode::Guest {
        note(&serving);
    } else {
        complain(&serving);
        server.serve(listener).await;
        return Ok(());
    }
    tokio::select! {
        () = server.clone().serve(listener) => {}
        requested = init::requested() => match requested {
            Ok(()) => server.shut_down().await,
            Err(error) => complain(&format!("wait for a power button: {error}")),
        }
    }
    // Whatever has happened, PID 1 does not end.
    std::future::pending().await
}

/// The control groups: a guest's own, or those that the agent was given. The machine's others are somebody else's.
fn make_groups(mode: Mode, given: Option<&Path>) -> Groups {
    let hierarchy = match mode {
        Mode::Guest => Some(Path::new("/sys/fs/cgroup")),
        Mode::Hosted => given,
    };
    let made = hierarchy.map_or_else(|| Ok(Groups::none()), Groups::create);
    let groups = made.unwrap_or_else(|error| {
        complain(&format!("make the control groups: {error}"));
        Groups::none()
    });
    if mode == Mode::Guest
        && let Err(error) = groups.adopt_agent()
    {
        complain(&format!("protect the agent's memory: {error}"));
    }
    groups
}

/// How much output may be kept in memory: a thirty-second of what there is, and 4 to 32 MiB.
fn kept_bytes_max(meminfo: &str) -> usize {
    let bytes = usize::try_from(metrics::kibibytes(meminfo, "MemTotal:")).unwrap_or(usize::MAX).saturating_mul(1024);
    (bytes / 32).clamp(4 << 20, 32 << 20)
}

/// Where Firecracker has its metadata service unless it is told otherwise.
const MMDS_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
