//! Why there is no connection by a proxy.

use std::io;

use crate::policy::ProxyFault;

/// Why a connection was not made.
#[derive(Debug)]
pub(in crate::egress) enum NotMade {
    /// As the server, or the way to it, would have it.
    Server(io::Error),
    /// The proxy makes none.
    Proxy(ProxyFault),
}

impl From<io::Error> for NotMade {
    fn from(error: io::Error) -> Self {
        Self::Server(error)
    }
}

impl From<io::ErrorKind> for NotMade {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Server(kind.into())
    }
}

impl From<ProxyFault> for NotMade {
    fn from(fault: ProxyFault) -> Self {
        Self::Proxy(fault)
    }
}
