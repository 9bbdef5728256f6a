//! The agent: init of the guest, and the server in it.
//!
//! ```text
//!  main -> init::boot (PID 1 only) -> serve -> http::Server::answer --+-> process::Service, filesystem::Service   (Connect, gRPC)
//!                                                                     +-> files, setup, metrics  (plain HTTP)
//! ```

mod api_error;
mod clock;
mod files;
mod filesystem;
mod freezer;
mod guest_path;
mod http;
mod identity;
mod init;
mod metrics;
mod process;
mod settings;
mod setup;
mod sys;
mod users;

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use tokio::net::TcpListener;

/// Whether the agent is the guest's own, or only runs on somebody's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// PID 1 of a guest: it mounts, and sets the clock, the random generator and the name.
    Guest,
    /// A program like any other, as in a test: it leaves the machine as it is.
    Hosted,
}

/// Boots the guest when `mode` says so, then serves for ever.
///
/// # Errors
///
/// Only where the agent cannot start to serve. As [`Mode::Guest`], a failed boot switches the machine off instead.
pub fn run(mode: Mode, address: SocketAddr) -> io::Result<()> {
    if mode == Mode::Guest
        && let Err(error) = init::boot()
    {
        init::give_up(&error);
        // The kernel panics when PID 1 ends, which is the next best way to tell the host.
        return Err(io::Error::other(error));
    }
    // One thread is enough for what an agent does, and what it does not touch need not be in a snapshot.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .build()?
        .block_on(serve(mode, address))
}

async fn serve(mode: Mode, address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    if mode == Mode::Hosted {
        // Orphans come here, as they come to PID 1. Where they do not, they are somebody else's to reap.
        let _ = nix::sys::prctl::set_child_subreaper(true);
    }
    let table = Arc::new(process::Table::default());
    let reaper = table.clone();
    tokio::spawn(async move {
        if let Err(error) = reaper.reap_for_ever().await {
            init::complain(&format!("reap children: {error}"));
        }
    });
    let freezer = match mode {
        Mode::Guest => freezer::Freezer::create(Path::new("/sys/fs/cgroup")).unwrap_or_else(|error| {
            init::complain(&format!("make a control group: {error}"));
            freezer::Freezer::none()
        }),
        // The machine's control groups are somebody else's.
        Mode::Hosted => freezer::Freezer::none(),
    };
    let server = http::Server::new(mode, table, Arc::new(freezer));
    init::complain(&format!("serving on {}", listener.local_addr()?));
    server.serve(listener).await;
    Ok(())
}
