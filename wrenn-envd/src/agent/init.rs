//! What PID 1 does before it serves.
//!
//! ```text
//!  kernel -> mount_kernel_files -> load_modules -> Cmdline::read -> mount_drives -> switch_root
//!                                                                                        |
//!                             serve <- name_guest <- configure_network <- mount_rest <---+
//! ```
//!
//! The initramfs holds `/init` (this binary), `/modules/*.ko`, `/modules/order` (their file names, one a line, in the order
//! in which they load), and the nodes `/dev/console` and `/dev/null`.
//!
//! A step that fails is printed on the console, and the machine is switched off: a guest that hangs tells nobody.

mod ca_bundle;
mod cmdline;
mod device;
mod identity;
mod idle;
mod java_stores;
mod limits;
mod modules;
mod mounts;
mod network;
mod resolver;
mod shutdown;
mod step;

use std::{
    fs::{self, OpenOptions},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::Path,
};

pub(super) use ca_bundle::set_ca_bundle;
use cmdline::Cmdline;
pub(super) use identity::{set_hostname, set_machine_id};
pub(super) use resolver::set_nameservers;
pub(super) use shutdown::{requested, shut_down};
use step::{BootError, Step as _};

use super::console::complain;

/// What the agent has to know of a guest that has booted.
#[derive(Debug)]
pub(super) struct Booted {
    /// The guest's own address.
    pub(super) address: Option<Ipv4Addr>,
    /// The host's end of its network.
    pub(super) host: Option<Ipv4Addr>,
    /// A directory of the writable drive, which has no name in the guest's own root.
    pub(super) drive: OwnedFd,
    /// Whether the VMM has a metadata service.
    pub(super) has_mmds: bool,
}

/// Makes a guest of a machine that the kernel has just started.
pub(super) fn boot() -> Result<Booted, BootError> {
    mounts::mount_kernel_files()?;
    open_console();
    modules::load(Path::new("/modules"))?;
    let cmdline = Cmdline::read()?;
    let drive = mounts::mount_drives(&cmdline)?;
    mounts::switch_root()?;
    mounts::mount_rest()?;
    score_processes();
    limits::raise();
    idle::quiet();
    network::configure(&cmdline)?;
    if !cmdline.nameservers.is_empty() {
        set_nameservers(&cmdline.nameservers).step("write /etc/resolv.conf")?;
    }
    identity::name_guest()?;
    let network = cmdline.network;
    Ok(Booted {
        address: network.map(|network| network.address),
        host: network.and_then(|network| network.gateway),
        drive,
        has_mmds: cmdline.has_mmds,
    })
}

/// Prints why the boot failed, and switches the machine off. Returns only if the kernel refuses.
pub(super) fn give_up(error: &BootError) {
    complain(&format!("{error}: {}", error.source));
    shutdown::switch_off();
}

/// Points the standard streams at the console that `devtmpfs` has, whatever the kernel gave.
fn open_console() {
    let console = OpenOptions::new().read(true).write(true).open("/dev/console");
    let Ok(console) = console.or_else(|_| OpenOptions::new().read(true).write(true).open("/dev/null")) else { return };
    let _ = nix::unistd::dup2_stdin(&console);
    let _ = nix::unistd::dup2_stdout(&console);
    let _ = nix::unistd::dup2_stderr(&console);
}

/// What a guest short of memory kills first. PID 1 itself is never killed, whatever its score: it has this one for its
/// children, which begin with it.
fn score_processes() {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "100") {
        complain(&format!("set the out-of-memory score of processes: {error}"));
    }
}
