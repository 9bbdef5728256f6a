//! The proxy by which a sandbox's connections leave, and what it is told of whom they are of.
//!
//! ```text
//!  a client ──▶ record: username, password ──▶ Credentials, while its sandbox runs ──▶ asked by the library, for each connection
//!                 └──▶ policy: the names of two secrets, and no more
//! ```
//!
//! The library keeps a policy in records of its own, and gets the password of none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use wrenn_core::{Error, SandboxId, Secret, SecretFuture, SecretSource, UpstreamProxy};

use crate::service::error::ServiceError;
use crate::store::records::{EgressProxy, Hidden, ProxyCredentials, ProxyTls, SandboxRecord};

/// A proxy as a client asks for it. Its credentials have a name of their own each time, so that after a change no proxy is
/// told what is for another one.
///
/// # Errors
/// [`ServiceError::BadProxy`]: the address has more than a host and a port; or a username comes without a password, or a
/// password without a username; or one of them has not 1 to 255 bytes.
pub fn wanted(
    address: String,
    username: Option<String>,
    password: Option<Hidden>,
    tls: Option<ProxyTls>,
) -> Result<EgressProxy, ServiceError> {
    if address.contains(['@', '/']) {
        return Err(bad("its address is HOST:PORT, and nothing else"));
    }
    Ok(EgressProxy { address, credentials: credentials(username, password)?, tls })
}

fn credentials(username: Option<String>, password: Option<Hidden>) -> Result<Option<ProxyCredentials>, ServiceError> {
    let (username, password) = match (username, password) {
        (None, None) => return Ok(None),
        (Some(username), Some(password)) => (username, password),
        (Some(_), None) => return Err(bad("a username has a password with it: give both, or neither")),
        (None, Some(_)) => return Err(bad("a password has a username with it: give both, or neither")),
    };
    if ![&username, &password.0].iter().all(|text| (1..=CREDENTIAL_BYTES_MAX).contains(&text.len())) {
        return Err(bad("a username and a password have 1 to 255 bytes each"));
    }
    let name = format!("egress-proxy-{:032x}", rand::random::<u128>());
    Ok(Some(ProxyCredentials { name, username, password }))
}

/// The library's proxy. It speaks SOCKS5, and is itself held to the policy: clients do not reach this server's networks by it.
///
/// # Errors
/// [`Error::InvalidInput`] for what is none.
pub(super) fn upstream(of: &EgressProxy) -> Result<UpstreamProxy, Error> {
    let scheme = if of.tls.is_some() { "socks5+tls" } else { "socks5" };
    let mut proxy = UpstreamProxy::of(&format!("{scheme}://{}", of.address))?.held_to_policy();
    if let Some(ProxyCredentials { name, .. }) = &of.credentials {
        let secret = |kind| format!("${{secret.{name}{kind}}}");
        proxy = proxy.credentials(&secret(USERNAME), &secret(PASSWORD))?;
    }
    let Some(tls) = &of.tls else { return Ok(proxy) };
    if let Some(name) = &tls.server_name {
        proxy = proxy.server_name(name)?;
    }
    match &tls.authority {
        Some(pem) => Ok(proxy.authority(pem)?),
        None => Ok(proxy),
    }
}

/// The credentials of what runs, which the library asks for. A clone is the same ones.
#[derive(Debug, Clone, Default)]
pub struct Credentials(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<HashMap<SandboxId, ProxyCredentials>>,
    changed: Notify,
}

impl Credentials {
    /// Knows what one is to tell its proxy, and nothing of earlier ones of it.
    pub(super) fn know(&self, record: &SandboxRecord) {
        let credentials = record.asked.network.egress_proxy.as_ref().and_then(|proxy| proxy.credentials.clone());
        match credentials {
            Some(credentials) => self.known().insert(record.id.clone(), credentials),
            None => self.known().remove(&record.id),
        };
        self.0.changed.notify_waiters();
    }

    /// Forgets what one that no longer runs was to tell.
    pub(super) fn forget(&self, id: &SandboxId) {
        self.known().remove(id);
    }

    /// What stands for a secret's name.
    fn find(&self, id: &SandboxId, name: &str) -> Option<Secret> {
        let known = self.known();
        let ProxyCredentials { name: own, username, password } = known.get(id)?;
        match name.strip_prefix(own.as_str())? {
            USERNAME => Some(Secret::new(username)),
            PASSWORD => Some(Secret::new(&password.0)),
            _ => None,
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SandboxId, ProxyCredentials>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SecretSource for Credentials {
    /// Waits for those of a sandbox that has just begun, whose guest may be quicker than its record: the library gives up
    /// after ten seconds.
    fn secret<'a>(&'a self, sandbox: &'a SandboxId, name: &'a str) -> SecretFuture<'a> {
        Box::pin(async move {
            if !name.starts_with(PREFIX) {
                return None;
            }
            loop {
                let changed = self.0.changed.notified();
                if let Some(found) = self.find(sandbox, name) {
                    return Some(found);
                }
                changed.await;
            }
        })
    }
}

fn bad(why: &'static str) -> ServiceError {
    ServiceError::BadProxy { why }
}

const PREFIX: &str = "egress-proxy-";
const USERNAME: &str = ".username";
const PASSWORD: &str = ".password";
/// RFC 1929.
const CREDENTIAL_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::store::records::{Asked, Network, Status};

    fn proxy(address: &str, username: Option<&str>, password: Option<&str>) -> Result<EgressProxy, ServiceError> {
        wanted(address.to_owned(), username.map(str::to_owned), password.map(|text| Hidden(text.to_owned())), None)
    }

    fn record(id: &str, proxy: EgressProxy) -> SandboxRecord {
        let network = Network { egress_proxy: Some(proxy), ..Network::default() };
        SandboxRecord {
            id: id.parse().expect("an id"),
            owner: "ada".to_owned(),
            template: "base".to_owned(),
            vcpus: 1,
            memory_mib: 512,
            timeout_sec: 300,
            pauses_at_timeout: false,
            status: Status::Running,
            why: None,
            created_at_ms: 1,
            started_at_ms: 1,
            updated_at_ms: 1,
            asked: Asked { network, ..Asked::default() },
        }
    }

    /// The names of the secrets that a policy has.
    fn named(proxy: &EgressProxy) -> [String; 2] {
        let name = &proxy.credentials.as_ref().expect("credentials").name;
        [format!("{name}.username"), format!("{name}.password")]
    }

    #[test]
    fn the_librarys_proxy_has_names_for_what_it_is_told_and_nothing_else_of_it() {
        let proxy = EgressProxy {
            tls: Some(ProxyTls { server_name: Some("proxy.example".to_owned()), authority: None }),
            ..proxy("93.184.216.34:1080", Some("a${b"), Some("hunter2")).expect("a proxy")
        };
        let upstream = upstream(&proxy).expect("a proxy");
        let text = serde_json::to_string(&upstream).expect("JSON");
        assert!(text.contains("socks5+tls://93.184.216.34:1080") && text.contains("proxy.example"), "{text}");
        assert!(text.contains("held_to_policy"), "{text}");
        assert!(named(&proxy).iter().all(|name| text.contains(&format!("${{secret.{name}}}"))), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("a${b"), "{text}");
        assert!(!format!("{proxy:?}").contains("hunter2"));
        // The record has it, and gives it back.
        let kept = serde_json::to_string(&proxy).expect("JSON");
        assert_eq!(serde_json::from_str::<EgressProxy>(&kept).expect("a proxy"), proxy);
    }

    #[test]
    fn what_is_no_proxy_is_refused_and_not_quoted() {
        let long = "a".repeat(256);
        for (address, username, password, part) in [
            ("ada:hunter2@proxy.example:1080", None, None, "HOST:PORT"),
            ("http://proxy.example:1080", None, None, "HOST:PORT"),
            ("proxy.example:1080", Some("ada"), None, "a password with it"),
            ("proxy.example:1080", None, Some("hunter2"), "a username with it"),
            ("proxy.example:1080", Some("ada"), Some(""), "1 to 255 bytes"),
            ("proxy.example:1080", Some(&*long), Some("hunter2"), "1 to 255 bytes"),
        ] {
            let error = proxy(address, username, password).expect_err(part).to_string();
            assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
        }
        for address in ["proxy.example", "proxy.example:0", "a b:1080", ""] {
            assert!(upstream(&proxy(address, None, None).expect("an address")).is_err(), "{address}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_is_answered_its_own_credentials_of_now_alone_and_waited_for() {
        let (first, second) = ("sb00f00ba70000002a", "sb00f00ba70000002b");
        let before = record(first, proxy("93.184.216.34:1080", Some("ada"), Some("before")).expect("a proxy"));
        let after = record(first, proxy("93.184.216.34:1080", Some("ada"), Some("after")).expect("a proxy"));
        let [old, new] =
            [&before, &after].map(|record| named(record.asked.network.egress_proxy.as_ref().expect("one")));
        let other: SandboxId = second.parse().expect("an id");
        let credentials = Credentials::default();
        let asks =
            async |id: &SandboxId, name: &str| timeout(Duration::from_secs(10), credentials.secret(id, name)).await;
        // A guest is quicker than its record.
        let (found, ()) = tokio::join!(asks(&before.id, &old[1]), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            credentials.know(&before);
        });
        assert_eq!(found, Ok(Some(Secret::new("before"))));
        assert_eq!(asks(&before.id, &old[0]).await, Ok(Some(Secret::new("ada"))));
        assert!(asks(&other, &old[1]).await.is_err(), "it is another's");
        assert_eq!(asks(&before.id, "API_KEY").await, Ok(None), "there is nothing to wait for");
        credentials.know(&after);
        assert_eq!(asks(&before.id, &new[1]).await, Ok(Some(Secret::new("after"))));
        assert!(asks(&before.id, &old[1]).await.is_err(), "it was for another proxy");
        credentials.forget(&before.id);
        assert!(asks(&before.id, &new[1]).await.is_err(), "it no longer runs");
        assert!(!format!("{credentials:?} {before:?}").contains("before\""));
    }
}
