//! Secrets, which guests do not see.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;

/// A secret. It is not shown by `Debug`.
///
/// ```
/// let key = wrenn_net::Secret::new("sk-123");
/// assert!(!format!("{key:?}").contains("123"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// A secret that is being looked up; `None` where there is none of that name.
pub type SecretFuture<'a> = Pin<Box<dyn Future<Output = Option<Secret>> + Send + 'a>>;

/// Where the secrets of one guest come from. It is asked for each request or connection that needs one, so what it answers
/// may change.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use wrenn_net::{Secret, SecretFuture, SecretSource};
///
/// struct Vault;
///
/// impl SecretSource for Vault {
///     fn secret<'a>(&'a self, name: &'a str) -> SecretFuture<'a> {
///         Box::pin(async move { std::env::var(name).ok().map(Secret::new) })
///     }
/// }
///
/// // A map is one, too.
/// let sources: [&dyn SecretSource; 2] = [&Vault, &BTreeMap::from([("KEY".to_owned(), Secret::new("sk-123"))])];
/// # assert_eq!(sources.len(), 2);
/// ```
pub trait SecretSource: Send + Sync {
    /// The secret of a name. A request or a connection waits ten seconds for it, and then fails.
    fn secret<'a>(&'a self, name: &'a str) -> SecretFuture<'a>;
}

impl Secret {
    /// A secret.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl SecretSource for BTreeMap<String, Secret> {
    fn secret<'a>(&'a self, name: &'a str) -> SecretFuture<'a> {
        Box::pin(std::future::ready(self.get(name).cloned()))
    }
}
