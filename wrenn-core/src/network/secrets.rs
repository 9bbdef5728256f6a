//! The secrets that rules put into guests' requests, and where they come from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use wrenn_net::{Secret, SecretFuture};

use crate::id::SandboxId;

/// Where the secrets come from that the [rules](crate::Rule) and the [proxies](crate::UpstreamProxy) of sandboxes' policies
/// name, given to a host by [`HostBuilder::secrets`](crate::HostBuilder::secrets). It is asked for each request or connection
/// that needs one, so what it answers may change, and each sandbox may get its own.
///
/// Whoever may give a sandbox its policy can have each secret sent to a server of their choice. A source that serves several
/// such people tells them apart by the sandbox.
///
/// ```
/// use wrenn_core::{SandboxId, Secret, SecretFuture, SecretSource};
///
/// struct Vault;
///
/// impl SecretSource for Vault {
///     fn secret<'a>(&'a self, sandbox: &'a SandboxId, name: &'a str) -> SecretFuture<'a> {
///         // … asks who the sandbox belongs to …
///         Box::pin(async move { (name == "GREETING").then(|| Secret::new(format!("hello from {sandbox}"))) })
///     }
/// }
///
/// // A map has the same for all sandboxes.
/// let same = std::collections::BTreeMap::from([("API_KEY".to_owned(), Secret::new("sk-123"))]);
/// let sources: [&dyn SecretSource; 2] = [&Vault, &same];
/// # assert_eq!(sources.len(), 2);
/// ```
pub trait SecretSource: Send + Sync {
    /// The secret that a rule of this sandbox names; `None` where it has none, and the guest is told which one it lacks. A
    /// request waits ten seconds for it, and then fails.
    fn secret<'a>(&'a self, sandbox: &'a SandboxId, name: &'a str) -> SecretFuture<'a>;
}

impl SecretSource for BTreeMap<String, Secret> {
    fn secret<'a>(&'a self, _: &'a SandboxId, name: &'a str) -> SecretFuture<'a> {
        Box::pin(std::future::ready(self.get(name).cloned()))
    }
}

/// The source of a host's secrets. By default there are none.
#[derive(Clone)]
pub(crate) struct Secrets(Arc<dyn SecretSource>);

/// The secrets of one sandbox.
pub(super) struct OfSandbox {
    secrets: Secrets,
    sandbox: SandboxId,
}

impl Secrets {
    pub(crate) fn of(source: impl SecretSource + 'static) -> Self {
        Self(Arc::new(source))
    }

    pub(super) fn of_sandbox(&self, sandbox: &SandboxId) -> OfSandbox {
        OfSandbox { secrets: self.clone(), sandbox: sandbox.clone() }
    }
}

impl Default for Secrets {
    fn default() -> Self {
        Self::of(BTreeMap::new())
    }
}

impl wrenn_net::SecretSource for OfSandbox {
    fn secret<'a>(&'a self, name: &'a str) -> SecretFuture<'a> {
        self.secrets.0.secret(&self.sandbox, name)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}
