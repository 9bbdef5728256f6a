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
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use wrenn_core::SandboxId;

use crate::service::clock::now_ms;
use crate::service::webhooks::target::{NoTarget, Reach, Target};
use crate::service::webhooks::{health, signature};
use crate::store::contract::{Store, StoreError};
use crate::store::records::{EventRecord, WebhookRecord};

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

/// What is sent to one webhook.
struct Delivery {
    webhook: String,
    kind: String,
    body: Vec<u8>,
    /// A permit for each request to this webhook that there may be at once.
    lane: Arc<Semaphore>,
}

impl Courier {
    /// One for the webhooks of a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, reach: Reach) -> Arc<Self> {
        let requests = Arc::new(Semaphore::new(REQUESTS_MAX));
        Arc::new(Self { store, reach, requests, tls: OnceLock::new() })
    }

    /// Brings what is heard of, for as long as there is something to hear.
    ///
    /// # Cancel-Safety
    /// What is under way is lost.
    pub async fn run(self: Arc<Self>, mut heard: Receiver<EventRecord>) {
        let (mut lanes, mut under_way) = (HashMap::new(), JoinSet::new());
        loop {
            let event = tokio::select! {
                heard = heard.recv() => heard,
                Some(_) = under_way.join_next(), if !under_way.is_empty() => continue,
            };
            match event {
                Ok(event) => {
                    if let Err(error) = self.begin(&event, &mut lanes, &mut under_way).await {
                        tracing::warn!(id = event.id, %error, "an event was not brought to webhooks");
                    }
                }
                Err(RecvError::Lagged(count)) => tracing::warn!(count, "events were not brought to webhooks"),
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn begin(
        self: &Arc<Self>,
        event: &EventRecord,
        lanes: &mut HashMap<String, Arc<Semaphore>>,
        under_way: &mut JoinSet<()>,
    ) -> Result<(), StoreError> {
        // Those of webhooks that nothing is under way to.
        lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        let webhooks = self.store.webhooks(&event.owner).await?;
        // Whoever has a key that was revoked learns nothing more.
        if webhooks.is_empty() || self.store.key(&event.owner).await?.is_some_and(|key| key.revoked_at_ms.is_some()) {
            return Ok(());
        }
        for webhook in webhooks {
            if !webhook.is_enabled || !webhook.kinds.is_empty() && !webhook.kinds.contains(&event.kind) {
                continue;
            }
            let lane = lanes.entry(webhook.id.clone()).or_insert_with(|| Arc::new(Semaphore::new(REQUESTS_OF_ONE_MAX)));
            if Arc::strong_count(lane) > WAITING_MAX {
                tracing::warn!(webhook = webhook.id, "an event was not brought to a webhook: too many wait for it");
                continue;
            }
            let (body, kind, lane) = (payload(event), event.kind.clone(), Arc::clone(lane));
            let delivery = Delivery { webhook: webhook.id, kind, body, lane };
            under_way.spawn(Arc::clone(self).bring(delivery));
        }
        Ok(())
    }

    /// Tries until it is there, or was tried often enough.
    async fn bring(self: Arc<Self>, delivery: Delivery) {
        for wait in WAITS {
            sleep(wait).await;
            let lane = delivery.lane.acquire().await;
            let request = self.requests.acquire().await;
            // As it is now: it may have been changed meanwhile, or removed.
            let webhook = match self.store.webhook(&delivery.webhook).await {
                Ok(Some(webhook)) if webhook.is_enabled => webhook,
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(webhook = delivery.webhook, %error, "a webhook cannot be looked up");
                    continue;
                }
            };
            let tried = timeout(ATTEMPT_MAX, self.send(&webhook, &delivery)).await.unwrap_or(Err(Failed::TooSlow));
            drop((lane, request));
            let why = tried.as_ref().err().map(ToString::to_string);
            if let Some(health) = health::after(&webhook, why.as_deref(), now_ms()) {
                let (since_ms, why) = (health.failing_since_ms, health.why.as_deref());
                let noted = self.store.note_webhook(&webhook.id, health.is_enabled, since_ms, why).await;
                if let Err(error) = noted {
                    tracing::warn!(webhook = webhook.id, %error, "how a webhook fares was not noted");
                }
            }
            if tried.is_ok() {
                return;
            }
        }
        tracing::info!(webhook = delivery.webhook, "an event was not brought to a webhook: it was tried often enough");
    }

    async fn send(&self, webhook: &WebhookRecord, delivery: &Delivery) -> Result<(), Failed> {
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

fn request(webhook: &WebhookRecord, target: &Target, delivery: &Delivery) -> Result<Request<Body>, axum::http::Error> {
    let body = &*delivery.body;
    Request::builder()
        .method(Method::POST)
        .uri(&target.path)
        .header(header::HOST, &target.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("wrenn-server/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .header("x-wrenn-event", &delivery.kind)
        .header("x-wrenn-signature", signature::own(&webhook.secret, now_ms() / 1000, body))
        .header("e2b-webhook-id", &webhook.id)
        .header("e2b-delivery-id", format!("dl{:032x}", rand::random::<u128>()))
        .header("e2b-signature-version", "v1")
        .header("e2b-signature", signature::as_e2b(&webhook.secret, body))
        .body(Body::from(delivery.body.clone()))
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

/// Before each attempt.
const WAITS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
];
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// Each has a descriptor.
const REQUESTS_MAX: usize = 32;
/// One that is slow leaves the others some.
const REQUESTS_OF_ONE_MAX: usize = 4;
/// Each has the event's text in memory.
const WAITING_MAX: usize = 1000;
