use std::io;

/// Why a slot could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The process may not make a network namespace or a tap.
    #[error("no permission to {what}: run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN")]
    Permission {
        /// The step that was refused.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The host has no tun/tap driver.
    #[error("/dev/net/tun cannot be opened: load the driver with `modprobe tun`")]
    NoTunDevice(#[source] io::Error),
    /// A step failed for a reason that has no remedy of its own.
    #[error("could not {what}")]
    Step {
        /// The step that failed.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl NetError {
    pub(crate) fn at(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Permission { what, source },
            _ => Self::Step { what, source },
        }
    }

    pub(crate) fn netlink(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> Self {
        move |error| {
            let source = match error {
                rtnetlink::Error::NetlinkError(message) => message.to_io(),
                other => io::Error::other(other),
            };
            Self::at(what)(source)
        }
    }
}
