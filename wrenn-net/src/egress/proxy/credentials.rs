//! What a proxy is told of whom a connection is, with its secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::time::timeout;

use crate::egress::secret::{Secret, SecretSource};
use crate::policy::{Credentials, ProxyFault};

/// A username and a password as they are sent. They are not shown by `Debug`.
pub(super) struct Filled {
    pub(super) username: String,
    pub(super) password: String,
}

/// Asks for the secrets in a proxy's credentials. `None` is a guest that has no source of them.
pub(super) async fn fill(credentials: &Credentials, source: Option<&dyn SecretSource>) -> Result<Filled, ProxyFault> {
    let Credentials { username, password } = credentials;
    let mut secrets = BTreeMap::new();
    for name in username.secrets().chain(password.secrets()) {
        let Some(source) = source else { return Err(ProxyFault::Secret) };
        let secret = timeout(SECRET_MAX, source.secret(name)).await.ok().flatten();
        secrets.insert(name, secret.ok_or(ProxyFault::Secret)?);
    }
    let filled = |value: &crate::policy::Value| {
        let text = value.filled(|name| secrets.get(name).map(Secret::expose)).map_err(|_missing| ProxyFault::Secret)?;
        match (1..=BYTES_MAX).contains(&text.len()) {
            true => Ok(text),
            false => Err(ProxyFault::Secret),
        }
    };
    Ok(Filled { username: filled(username)?, password: filled(password)? })
}

impl fmt::Debug for Filled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filled(..)")
    }
}

/// RFC 1929. HTTP has no limit of its own.
const BYTES_MAX: usize = 255;
const SECRET_MAX: Duration = Duration::from_secs(10);
