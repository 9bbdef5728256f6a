//! What all guests of a host share of their intercepted connections.

use std::fmt;
use std::sync::OnceLock;

use crate::egress::intercept::authority::Authority;
use crate::egress::servers::Servers;
use crate::error::NetError;

/// Ends guests' TLS where a policy has [rules](crate::Rule): as an [`Authority`] that the guests trust, and as a client of
/// servers that this host trusts. One serves all guests of a host.
///
/// ```
/// use wrenn_net::{Authority, Interceptor};
///
/// # fn main() -> Result<(), wrenn_net::NetError> {
/// let interceptor = Interceptor::new(Authority::generate()?);
/// println!("for the guest's bundle of authorities:\n{}", interceptor.authority()?.certificate());
/// # Ok(()) }
/// ```
pub struct Interceptor {
    authority: OnceLock<Authority>,
    make: Make,
    servers: Servers,
}

type Make = Box<dyn Fn() -> Result<Authority, NetError> + Send + Sync>;

impl Interceptor {
    /// Trusts the authorities of this host: those of its bundle, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`. They are read
    /// with the first connection.
    #[must_use]
    pub fn new(authority: Authority) -> Self {
        Self { authority: authority.into(), ..Self::when_needed(Authority::generate) }
    }

    /// As [`new`](Self::new), with an authority that is made when it is first needed. It is made anew after an error, and two
    /// threads may make it at once: they have to make the same.
    #[must_use]
    pub fn when_needed(make: impl Fn() -> Result<Authority, NetError> + Send + Sync + 'static) -> Self {
        Self { authority: OnceLock::new(), make: Box::new(make), servers: Servers::default() }
    }

    /// Trusts servers that these authorities certify, too. They are in PEM.
    ///
    /// # Errors
    /// There is no certificate, or one cannot be read.
    pub fn trust(mut self, pem: &str) -> Result<Self, NetError> {
        self.servers.trust(pem)?;
        Ok(self)
    }

    /// The authority, whose certificate guests have to trust. The first call may block.
    ///
    /// # Errors
    /// It could not be made.
    pub fn authority(&self) -> Result<&Authority, NetError> {
        if let Some(authority) = self.authority.get() {
            return Ok(authority);
        }
        let made = (self.make)()?;
        Ok(self.authority.get_or_init(|| made))
    }

    pub(in crate::egress) fn servers(&self) -> &Servers {
        &self.servers
    }
}

impl fmt::Debug for Interceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interceptor").field("authority", &self.authority.get()).finish_non_exhaustive()
    }
}
