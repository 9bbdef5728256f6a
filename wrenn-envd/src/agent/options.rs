use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// Whether the agent is the guest's own, or only runs on somebody's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// PID 1 of a guest: it mounts, and sets the clock, the random generator and the name.
    Guest,
    /// A program like any other, as in a test: it leaves the machine as it is.
    Hosted,
}

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether it is the guest's own.
    pub mode: Mode,
    /// Where it listens.
    pub address: SocketAddr,
    /// For [`Mode::Hosted`]: the directory of a mounted cgroup2 below which it makes its groups. `None`: it makes none.
    pub cgroup: Option<PathBuf>,
    /// For [`Mode::Hosted`]: where it publishes what listens on the loopback. `None`: it publishes nothing.
    pub publish: Option<IpAddr>,
    /// For [`Mode::Hosted`]: where the hooks are. `None`: there are none.
    pub hooks: Option<PathBuf>,
    /// For [`Mode::Hosted`]: a directory of the file system that `/fsfreeze` freezes. `None`: it freezes none.
    pub drive: Option<PathBuf>,
    /// For [`Mode::Hosted`]: where the host's connections come from; others are limited. `None`: from anywhere.
    pub host: Option<IpAddr>,
    /// For [`Mode::Hosted`]: the metadata service. `None`: there is none.
    pub mmds: Option<SocketAddr>,
}

impl Options {
    /// An agent that does nothing but serve; what a guest needs is added when it has booted.
    #[must_use]
    pub fn new(mode: Mode, address: SocketAddr) -> Self {
        Self { mode, address, cgroup: None, publish: None, hooks: None, drive: None, host: None, mmds: None }
    }
}
