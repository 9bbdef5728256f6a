use std::io;
use std::time::Duration;

/// Why a slot could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The process may not make a network namespace or a tap.
    #[error(
        "no permission to {what}: run as root, or with CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW, or as a user who may make \
         user namespaces"
    )]
    Permission {
        /// The step that was refused.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The process has no rights of its own, and may not make a user namespace in which it would have them.
    #[error(
        "this user may not make user namespaces: run as root, or let users make them: raise user.max_user_namespaces, on Debian \
         set kernel.unprivileged_userns_clone=1, on Ubuntu 24.04 set kernel.apparmor_restrict_unprivileged_userns=0 or give the \
         program a profile with `userns`; a container needs a seccomp profile that allows `clone` of them"
    )]
    UserNamespace(#[source] io::Error),
    /// The host has no tun/tap driver, or the container has no device of it.
    #[error("there is no /dev/net/tun: load the driver with `modprobe tun`; give a container the device")]
    NoTunDevice(#[source] io::Error),
    /// The process may not open the device, which a container's device rules can forbid to root too.
    #[error("/dev/net/tun may not be opened: run as a user who may; give a container the device")]
    TunForbidden(#[source] io::Error),
    /// The kernel has no transparent proxying.
    #[error(
        "this kernel cannot lead a guest's connections to a program: load `nft_tproxy`, or build it with NFT_TPROXY and NF_TPROXY_IPV4"
    )]
    NoTransparentProxy(#[source] io::Error),
    /// The kernel has made no slot in time.
    #[error("no network slot was made within {after:?}: the host makes or frees too many network namespaces at once")]
    TooSlow {
        /// How long was waited.
        after: Duration,
    },
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

    /// Of the table of rules.
    pub(crate) fn rules(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => Self::NoTransparentProxy(source),
            _ => Self::at("make the guest's rules")(source),
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
