//! Brings events to webhooks.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use wrenn_core::SandboxId;

use crate::service::clock::now_ms;
use crate::service::webhooks::target::{NoTarget, Reach, Target};
use crate::service::webhooks::{health, signature};
use crate::store::contract::{Store, StoreError};
use crate::store::records::{DeliveryRecord, EventRecord, WebhookRecord};

/// Brings events to the webhooks that want them.
#[derive(Debug)]
pub struct Courier {
    store: Arc<dyn Store>,
    reach: Reach,
    /// A permit for each request that there may be at once.
    requests: Arc<Semaphore>,
    tls: OnceLock<Arc<ClientConfig>>,
}

/// Why an attempt has failed, as a webhook's owner reads it.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    NoTarget(#[from] NoTarget),
    #[error("it cannot be connected to: {0}")]
    Unconnected(#[from] io::Error),
    #[error("it does not speak HTTP: {0}")]
    NoHttp(#[from] hyper::Error),
    #[error("the request cannot be written: {0}")]
    NoRequest(#[from] axum::http::Error),
    #[error("it answered {0}")]
    Refused(StatusCode),
    #[error("it did not answer within {} seconds", ATTEMPT_MAX.as_secs())]
    TooSlow,
}

/// What becomes of a delivery after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It was brought, or nobody wants it any more.
    Done,
    Again,
}

/// The deliveries that are under way.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<()>,
    by_id: HashMap<String, AbortHandle>,
    /// A permit for each request that there may be at once, of each webhook.
    lanes: HashMap<String, Arc<Semaphore>>,
}

impl Courier {
    /// One for the webhooks of a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, reach: Reach) -> Arc<Self> {
        let requests = Arc::new(Semaphore::new(REQUESTS_MAX));
        Arc::new(Self { store, reach, requests, tls: OnceLock::new() })
    }

    /// Brings what is in the store, and what is heard of, for as long as there is something to hear.
    ///
    /// # Cancel-Safety
    /// What is under way stays in the store, for the next one.
    pub async fn run(self: Arc<Self>, mut heard: Receiver<EventRecord>) {
        let (mut under_way, mut looks) = (UnderWay::default(), interval(LOOKED_EACH));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                Some(_) = under_way.tasks.join_next() => continue,
                // The first time at once: an earlier server may have left some.
                _ = looks.tick() => None,
                heard = heard.recv() => match heard {
                    Ok(event) => Some(event.id),
                    Err(RecvError::Lagged(_)) => None,
                    Err(RecvError::Closed) => return,
                },
            };
            if let Err(error) = self.begin(event.as_deref(), &mut under_way).await {
                tracing::warn!(event, %error, "events are brought to webhooks later");
            }
        }
    }

    /// Begins with what is to be brought of an event, or of all, and is not under way.
    async fn begin(self: &Arc<Self>, event: Option<&str>, under_way: &mut UnderWay) -> Result<(), StoreError> {
        let UnderWay { tasks, by_id, lanes } = under_way;
        by_id.retain(|_, task| !task.is_finished());
        // Those of webhooks that nothing is under way to.
        lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        for delivery in self.store.deliveries(event).await? {
            if by_id.contains_key(&delivery.id) {
                continue;
            }
            let lane = lanes.entry(delivery.webhook.clone());
            let lane = Arc::clone(lane.or_insert_with(|| Arc::new(Semaphore::new(REQUESTS_OF_ONE_MAX))));
            let id = delivery.id.clone();
            by_id.insert(id, tasks.spawn(Arc::clone(self).bring(delivery, lane)));
        }
        Ok(())
    }

    /// Tries until it is there, or was tried often enough.
    async fn bring(self: Arc<Self>, mut delivery: DeliveryRecord, lane: Arc<Semaphore>) {
        loop {
            sleep(until(delivery.due_at_ms, now_ms())).await;
            if self.attempt(&delivery, &lane).await == Next::Done {
                break;
            }
            delivery.attempts += 1;
            let Some(wait) = wait(delivery.attempts) else {
                let (webhook, event) = (&delivery.webhook, &delivery.event.id);
                tracing::info!(webhook, event, "an event was not brought to a webhook: it was tried often enough");
                break;
            };
            delivery.due_at_ms = now_ms().saturating_add(wait);
            let noted = self.store.note_delivery(&delivery.id, delivery.attempts, delivery.due_at_ms).await;
            if let Err(error) = noted {
                tracing::warn!(delivery = delivery.id, %error, "an attempt was not noted: a restart makes it again");
            }
        }
        if let Err(error) = self.store.remove_delivery(&delivery.id).await {
            tracing::warn!(delivery = delivery.id, %error, "a delivery that is done was not removed: it is made again");
        }
    }

    async fn attempt(&self, delivery: &DeliveryRecord, lane: &Semaphore) -> Next {
        let _turn = (lane.acquire().await, self.requests.acquire().await);
        let webhook = match self.wanted(delivery).await {
            Ok(Some(webhook)) => webhook,
            Ok(None) => return Next::Done,
            Err(error) => {
                tracing::warn!(webhook = delivery.webhook, %error, "a webhook cannot be looked up");
                return Next::Again;
            }
        };
        let tried = timeout(ATTEMPT_MAX, self.send(&webhook, delivery)).await.unwrap_or(Err(Failed::TooSlow));
        let why = tried.as_ref().err().map(ToString::to_string);
        if let Some(health) = health::after(&webhook, why.as_deref(), now_ms()) {
            let (since_ms, why) = (health.failing_since_ms, health.why.as_deref());
            let noted = self.store.note_webhook(&webhook.id, health.is_enabled, since_ms, why).await;
            if let Err(error) = noted {
                tracing::warn!(webhook = webhook.id, %error, "how a webhook fares was not noted");
            }
        }
        if tried.is_ok() { Next::Done } else { Next::Again }
    }

    /// The webhook as it is now: it may have been changed since the event, or removed. `None` where the event is not to be
    /// brought any more.
    async fn wanted(&self, delivery: &DeliveryRecord) -> Result<Option<WebhookRecord>, StoreError> {
        if now_ms().saturating_sub(delivery.event.at_ms) > AGE_MAX_MS {
            return Ok(None);
        }
        let Some(webhook) = self.store.webhook(&delivery.webhook).await? else { return Ok(None) };
        // Whoever has a key that was revoked learns nothing more.
        let key = self.store.key(&webhook.owner).await?;
        let is_revoked = key.is_some_and(|key| key.revoked_at_ms.is_some());
        Ok(Some(webhook).filter(|webhook| webhook.is_enabled && !is_revoked))
    }

    async fn send(&self, webhook: &WebhookRecord, delivery: &DeliveryRecord) -> Result<(), Failed> {
        let target = Target::of(&webhook.url)?;
        let request = request(webhook, &target, delivery)?;
        let stream = TcpStream::connect(target.resolve(self.reach).await?).await?;
        let stream = if target.is_tls {
            let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
            Either::Right(TlsConnector::from(self.tls()?).connect(name, stream).await?)
        } else {
            Either::Left(stream)
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with this.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let status = sender.send_request(request).await?.status();
        // One that sends elsewhere may send to where nothing is to be sent.
        if status.is_success() { Ok(()) } else { Err(Failed::Refused(status)) }
    }

    /// What trusts whom the host trusts, which is read once.
    fn tls(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.tls.get() {
            return Ok(Arc::clone(config));
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
        Ok(Arc::clone(self.tls.get_or_init(|| Arc::new(config))))
    }
}

fn request(
    webhook: &WebhookRecord,
    target: &Target,
    delivery: &DeliveryRecord,
) -> Result<Request<Body>, axum::http::Error> {
    let body = payload(&delivery.event);
    Request::builder()
        .method(Method::POST)
        .uri(&target.path)
        .header(header::HOST, &target.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("wrenn-server/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .header("x-wrenn-event", &delivery.event.kind)
        .header("x-wrenn-signature", signature::own(&webhook.secret, now_ms() / 1000, &body))
        .header("e2b-webhook-id", &webhook.id)
        .header("e2b-delivery-id", &delivery.id)
        .header("e2b-signature-version", "v1")
        .header("e2b-signature", signature::as_e2b(&webhook.secret, &body))
        .body(Body::from(body))
}

/// An event as E2B's receivers expect it, which is as E2B's API lists it. One of a build is like it, without a sandbox.
fn payload(event: &EventRecord) -> Vec<u8> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(event.at_ms) * 1_000_000);
    let (sandbox, build) = (event.subject.sandbox().map(SandboxId::as_str), event.subject.build());
    let body = json!({
        "version": "v1",
        "id": event.id,
        "type": format!("sandbox.lifecycle.{}", event.kind),
        "eventData": event.why.as_ref().map(|why| json!({ "reason": why })),
        "sandboxId": sandbox,
        "sandboxBuildId": build.unwrap_or(&event.template),
        "sandboxExecutionId": sandbox,
        "sandboxTeamId": event.owner,
        "sandboxTemplateId": event.template,
        "timestamp": at.ok().and_then(|at| at.format(&Rfc3339).ok()),
    });
    body.to_string().into_bytes()
}

/// After so many attempts, how long until the next one, in milliseconds; `None` after the last.
fn wait(attempts: u32) -> Option<i64> {
    WAITS_MS.get(usize::try_from(attempts).ok()?).copied()
}

/// How long until that time. A clock that was put back has nobody wait for longer than between two attempts.
fn until(due_at_ms: i64, now_ms: i64) -> Duration {
    let longest = WAITS_MS.into_iter().max().unwrap_or_default();
    Duration::from_millis(due_at_ms.saturating_sub(now_ms).clamp(0, longest).unsigned_abs())
}

/// Before each attempt.
const WAITS_MS: [i64; 6] = [0, 1_000, 5_000, 30_000, 120_000, 600_000];
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// For what was not heard of, such as while the store did not answer.
const LOOKED_EACH: Duration = Duration::from_secs(60);
/// A receiver that gets what happened longer ago has no use for it.
const AGE_MAX_MS: i64 = 24 * 3600 * 1000;
/// Each has a descriptor.
const REQUESTS_MAX: usize = 32;
/// One that is slow leaves the others some.
const REQUESTS_OF_ONE_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_six_times_and_waited_for_no_longer_than_between_two_of_them() {
        let waits: Vec<i64> = (0..).map_while(wait).collect();
        assert_eq!((waits.len(), waits[1], wait(6)), (6, 1_000, None));
        assert_eq!(until(5_000, 2_000), Duration::from_secs(3));
        assert_eq!(until(5_000, 9_000), Duration::ZERO, "it is late");
        assert_eq!(until(i64::MAX, 0), Duration::from_secs(600), "the clock was put back");
    }
}
