//! The door: requests to sandboxes' ports go to them, and all others to the server's own routes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::timeout;
use wrenn_core::SandboxId;

use crate::proxy::agent::{self, Need};
use crate::proxy::answer::{TRAFFIC_TOKEN, Unreached};
use crate::proxy::carry::{Carrier, carrier, carry, readdress};
use crate::proxy::connector::{Connector, authority};
use crate::proxy::counted::counted;
use crate::proxy::signature::{self, Signed};
use crate::proxy::streams::{self, Wanted};
use crate::proxy::target::{self, Target};
use crate::service::carried::Carried;
use crate::service::clock::now_ms;
use crate::service::cut::Cut;
use crate::service::meters::Direction;
use crate::service::sandboxes::Sandboxes;
use crate::service::sandboxes::reach::Reached;
use crate::service::secret::{Purpose, Secret};

/// What the door knows.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    sandboxes: Arc<Sandboxes>,
    secret: Arc<Secret>,
    domain: Arc<str>,
    carrier: Carrier,
    cut: Arc<Cut>,
}

impl Door {
    /// A door to all sandboxes, whose ports have names below `domain`.
    pub(crate) fn new(sandboxes: Arc<Sandboxes>, secret: Arc<Secret>, domain: Arc<str>, cut: Arc<Cut>) -> Self {
        let carrier = carrier(Connector::new(Arc::clone(&sandboxes)));
        Self { sandboxes, secret, domain, carrier, cut }
    }
}

/// Carries what is for a port of a sandbox.
pub(crate) async fn door(State(door): State<Door>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Some(target) = door.target(&parts) else { return next.run(Request::from_parts(parts, body)).await };
    let headers = parts.headers.clone();
    let passed = door.pass(&target, Request::from_parts(parts, body)).await;
    door.sandboxes.meters().carried(passed.is_ok());
    let mut response = match passed {
        Ok(response) => response,
        Err(unreached) => unreached.answer(&target.id, target.port, &headers),
    };
    response.extensions_mut().insert(Carried);
    response
}

impl Door {
    fn target(&self, parts: &Parts) -> Option<Target> {
        target::named(parts, &self.domain).or_else(|| self.unnamed(parts))
    }

    /// Older clients, and addresses of files, do not say which sandbox they are for; their tokens and signatures do.
    fn unnamed(&self, parts: &Parts) -> Option<Target> {
        let need = agent::need(parts)?;
        if let Some(token) = parts.headers.get(wrenn_envd::ACCESS_TOKEN_HEADER) {
            return self.secret.owner_of(token.to_str().ok()?, Purpose::Agent).map(|id| Target::agent(&id));
        }
        let signed = Signed::of(parts).filter(|_| need == Need::TokenOrSignature)?;
        let is_its = |id: &SandboxId| signed.is_by(&self.secret.token(id, Purpose::Agent), now_ms() / 1000);
        self.sandboxes.running_ids().iter().find(|id| is_its(id)).map(Target::agent)
    }

    async fn pass(&self, target: &Target, request: Request) -> Result<Response, Unreached> {
        let id: SandboxId = target.id.parse().map_err(|_| Unreached::NoSandbox)?;
        let is_agents = target.port == wrenn_envd::AGENT_PORT;
        let (mut parts, body) = request.into_parts();
        if is_agents {
            self.check_agents(&id, &parts)?;
        }
        let reached = match self.sandboxes.reach(&id).await {
            Ok(Some(reached)) => reached,
            Ok(None) => return Err(Unreached::NoSandbox),
            Err(error) => return Err(Unreached::NotWoken(error.to_string())),
        };
        let meters = self.sandboxes.meters();
        let body = counted(body, meters.carried_bytes(Direction::In));
        let response = if is_agents && Wanted::is_one(parts.uri.path(), &parts.headers) {
            self.stream(parts, body, &reached).await?
        } else {
            if is_agents {
                agent::credentials(&mut parts.headers, &reached)?;
            } else {
                self.check_traffic(&reached, &parts)?;
                to_server(&mut parts, &reached, target.port);
            }
            let path = path(&parts, target, is_agents);
            let mut request = Request::from_parts(parts, body);
            readdress(&mut request, authority(&reached, target.port), &path)?;
            carry(&self.carrier, request, meters).await?
        };
        Ok(response.map(|body| counted(body, meters.carried_bytes(Direction::Out))))
    }

    /// A stream of the agent's, which outlives a pause.
    async fn stream(&self, mut parts: Parts, body: Body, reached: &Reached) -> Result<Response, Unreached> {
        let body = timeout(MESSAGE_MAX, to_bytes(body, MESSAGE_BYTES_MAX)).await;
        let Ok(Ok(body)) = body else { return Err(Unreached::NoMessage) };
        if let Some(wanted) = Wanted::of(parts.uri.path(), &parts.headers, &body) {
            let (sandboxes, cut) = (Arc::clone(&self.sandboxes), Arc::clone(&self.cut));
            return streams::open(wanted, sandboxes, self.carrier.clone(), cut, reached).await;
        }
        // The agent says what is wrong with it.
        agent::credentials(&mut parts.headers, reached)?;
        let path = parts.uri.path().to_owned();
        let mut request = Request::from_parts(parts, Body::from(body));
        readdress(&mut request, authority(reached, wrenn_envd::AGENT_PORT), &path)?;
        carry(&self.carrier, request, self.sandboxes.meters()).await
    }

    fn check_agents(&self, id: &SandboxId, parts: &Parts) -> Result<(), Unreached> {
        let need = agent::need(parts).ok_or(Unreached::NoRoute)?;
        let token = parts.headers.get(wrenn_envd::ACCESS_TOKEN_HEADER).and_then(|token| token.to_str().ok());
        let has_token = || token.is_some_and(|token| self.secret.owner_of(token, Purpose::Agent).as_ref() == Some(id));
        let has_signature = || {
            Signed::of(parts)
                .is_some_and(|signed| signed.is_by(&self.secret.token(id, Purpose::Agent), now_ms() / 1000))
        };
        let may = match need {
            Need::Nothing => true,
            Need::Token => has_token(),
            Need::TokenOrSignature => has_token() || has_signature(),
        };
        if may { Ok(()) } else { Err(Unreached::NotTheAgents) }
    }

    fn check_traffic(&self, reached: &Reached, parts: &Parts) -> Result<(), Unreached> {
        if !reached.record.asked.network.inbound.needs_token {
            return Ok(());
        }
        let token = parts.headers.get(TRAFFIC_TOKEN).ok_or(Unreached::NoToken)?;
        let owner = token.to_str().ok().and_then(|token| self.secret.owner_of(token, Purpose::Traffic));
        if owner.as_ref() == Some(&reached.record.id) { Ok(()) } else { Err(Unreached::WrongToken) }
    }
}

/// A guest's server does not get what opens its sandbox.
fn to_server(parts: &mut Parts, reached: &Reached, port: u16) {
    parts.headers.remove(TRAFFIC_TOKEN);
    parts.headers.remove("x-api-key");
    let authority = parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let asked = authority.or_else(|| parts.headers.get(header::HOST).cloned());
    if let Some(asked) = asked {
        parts.headers.insert("x-forwarded-host", asked);
    }
    let host = reached.record.asked.network.inbound.host.as_deref().unwrap_or(HOST);
    if let Ok(host) = HeaderValue::from_str(&host.replace("${PORT}", &port.to_string())) {
        parts.headers.insert(header::HOST, host);
    }
}

/// What is asked for there, of what was asked for here.
fn path(parts: &Parts, target: &Target, is_agents: bool) -> String {
    let path = parts.uri.path().get(target.prefix_len..).unwrap_or_default();
    let path = if path.is_empty() { "/" } else { path };
    match parts.uri.query() {
        Some(query) if is_agents => format!("{path}?{}", signature::without(query)),
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// What servers that run on a developer's own machine let in.
const HOST: &str = "localhost:${PORT}";
/// For the one message of a request for a stream.
const MESSAGE_MAX: Duration = Duration::from_secs(30);
const MESSAGE_BYTES_MAX: usize = 4 << 20;
