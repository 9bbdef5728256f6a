//! The requests of one intercepted connection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use http::request::Parts;
use http::{Request, Response, StatusCode, header};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::upgrade::OnUpgrade;
use tokio::time::timeout;

use crate::egress::intercept::changes::{Changes, missing};
use crate::egress::intercept::refused::{Body, Refused};
use crate::egress::intercept::target::Target;
use crate::egress::secret::{Secret, SecretSource};
use crate::egress::shared::Shared;

/// One intercepted connection.
pub(super) struct Session {
    shared: Arc<Shared>,
    secrets: Arc<dyn SecretSource>,
    target: Target,
    upstream: Upstream,
    /// Whether the request that is under way asks for another protocol.
    is_upgrading: AtomicBool,
    upgraded: Mutex<Option<Upgraded>>,
}

/// Where requests are passed on to.
pub(super) enum Upstream {
    /// One after the other.
    Http1(tokio::sync::Mutex<http1::SendRequest<Incoming>>),
    Http2(http2::SendRequest<Incoming>),
    /// Nowhere, and why.
    Nowhere(String),
}

/// What both connections become once the server has agreed to another protocol.
pub(super) struct Upgraded {
    pub(super) guest: OnUpgrade,
    pub(super) upstream: OnUpgrade,
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        secrets: Arc<dyn SecretSource>,
        target: Target,
        upstream: Upstream,
    ) -> Arc<Self> {
        let (is_upgrading, upgraded) = (AtomicBool::new(false), Mutex::new(None));
        Arc::new(Self { shared, secrets, target, upstream, is_upgrading, upgraded })
    }

    /// Whether the end of the server's connection may be that of its HTTP alone.
    pub(super) fn is_upgrading(&self) -> bool {
        self.is_upgrading.load(Relaxed)
    }

    pub(super) fn take_upgraded(&self) -> Option<Upgraded> {
        self.upgraded.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Answers a request. On an error the guest's connection ends as the server's did, without an answer.
    pub(super) async fn answer(&self, mut request: Request<Incoming>) -> hyper::Result<Response<Body>> {
        let of_guest = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        if let Err(refused) = self.prepare(&mut parts).await {
            tracing::debug!(target = self.target.name, why = refused.why, "a guest's request was not passed on");
            return Ok(refused.into_response());
        }
        self.is_upgrading.store(parts.headers.contains_key(header::UPGRADE), Relaxed);
        let mut response = match &self.upstream {
            Upstream::Http1(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await?;
                sender.send_request(Request::from_parts(parts, body)).await?
            }
            Upstream::Http2(sender) => {
                let mut sender = sender.clone();
                sender.ready().await?;
                sender.send_request(Request::from_parts(parts, body)).await?
            }
            Upstream::Nowhere(why) => {
                return Ok(Refused::new(StatusCode::BAD_GATEWAY, why).into_response());
            }
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = Upgraded { guest: of_guest, upstream: hyper::upgrade::on(&mut response) };
            *self.upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some(upgraded);
        } else {
            self.is_upgrading.store(false, Relaxed);
        }
        // It leads past the rules, to HTTP/3.
        response.headers_mut().remove(header::ALT_SVC);
        Ok(response.map(Either::Left))
    }

    /// Makes of a request what the rules want, as they are now.
    async fn prepare(&self, request: &mut Parts) -> Result<(), Refused> {
        self.target.check(request)?;
        let policy = self.shared.policy();
        let changes = Changes::of(policy.rules_of(&self.target.name, self.target.port), request);
        // All at once, so that a request waits no longer for many than for one.
        let secrets = changes.secrets().into_iter().map(|name| async move { Ok((name, self.secret(name).await?)) });
        let secrets: BTreeMap<_, _> = try_join_all(secrets).await?.into_iter().collect();
        changes.make(&secrets, request)
    }

    async fn secret(&self, name: &str) -> Result<Secret, Refused> {
        match timeout(SECRET_MAX, self.secrets.secret(name)).await {
            Ok(Some(secret)) => Ok(secret),
            Ok(None) => {
                tracing::debug!(name, target = self.target.name, "a rule needs a secret that is not there");
                Err(missing(name))
            }
            Err(_elapsed) => {
                tracing::debug!(name, target = self.target.name, "a secret did not come in time");
                let why = format!("the secret `{name}`, which a rule needs, did not come in time");
                Err(Refused::new(StatusCode::GATEWAY_TIMEOUT, why))
            }
        }
    }
}

/// Shorter than programs wait for an answer.
const SECRET_MAX: Duration = Duration::from_secs(10);
