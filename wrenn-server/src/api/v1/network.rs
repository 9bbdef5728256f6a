//! What a sandbox may reach, and who may reach it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::api::state::Context;
use crate::api::v1::answer::Refused;
use crate::api::v1::body::{Body, maybe_object};
use crate::api::v1::exact;
use crate::api::v1::owner::Owner;
use crate::api::v1::path::SandboxPath;
use crate::api::v1::refusals::{Failing, Missing};
use crate::service::egress_proxy;
use crate::service::error::ServiceError;
use crate::store::records::{EgressProxy, Hidden, Inbound, Network, ProxyTls};

/// As clients send and get it. An address beats a name, and what is allowed beats what is denied.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = Network)]
pub(super) struct NetworkBody {
    /// Whether the public internet is reached.
    #[schema(default = true)]
    internet: bool,
    /// What is reached in any case: `10.2.0.7`, `10.2.0.0/16`, `tcp://10.2.0.7:5432`, `pypi.org:443`, `*.example.com`.
    allow: Vec<String>,
    /// What is not reached unless that is allowed: addresses and networks.
    deny: Vec<String>,
    /// The headers that are put into requests to a name on their way out, by the name.
    headers: BTreeMap<String, BTreeMap<String, String>>,
    /// The DNS servers that are asked for it, 10 at most: public ones, or those in a private network that `allow` names with
    /// their port 53. With an empty list its questions are refused; null stands for the server's own.
    #[schema(value_type = Option<Vec<String>>, max_items = 10, example = json!(["9.9.9.9"]))]
    dns_servers: Option<Vec<IpAddr>>,
    /// The SOCKS5 proxy by which its TCP connections leave, as far as they are let through; null for none.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "maybe_object")]
    egress_proxy: Option<ProxyBody>,
    /// Whether requests to the sandbox's ports need no token.
    #[schema(default = true)]
    public: bool,
    /// The `Host` that the sandbox's servers are shown: `localhost:${PORT}` where none is given.
    host: Option<String>,
    /// The ports on which the sandbox's servers speak TLS.
    #[schema(schema_with = exact::ports)]
    tls_ports: Vec<u16>,
}

/// A SOCKS5 proxy. It is public, or in a private network where `allow` names its address with its port. UDP is refused while
/// there is one.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = EgressProxy)]
struct ProxyBody {
    /// `HOST:PORT`; the host is a name or an address.
    #[schema(pattern = "^[^@/]+:[0-9]{1,5}$", example = "proxy.example:1080")]
    address: String,
    /// What it is told; with `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    username: Option<String>,
    /// What it is told; with `username`. It is not shown again.
    #[serde(skip_serializing)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 255, write_only)]
    password: Option<Hidden>,
    /// How it is spoken to within TLS; null without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "maybe_object")]
    tls: Option<ProxyTlsBody>,
}

/// How a proxy is spoken to within TLS.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = EgressProxyTls)]
struct ProxyTlsBody {
    /// The name that its certificate has to be for, if that is not its host.
    server_name: Option<String>,
    /// Who has to certify it, in PEM, in place of whom the server's machine trusts. It is not shown again.
    #[serde(skip_serializing)]
    #[schema(write_only)]
    authority: Option<String>,
}

/// [`NetworkBody`] as clients send it, for the document: a proxy's username has a password with it, which no answer has.
#[derive(Debug)]
pub(super) enum NewNetwork {}

impl PartialSchema for NewNetwork {
    fn schema() -> RefOr<Schema> {
        exact::sent_network(NetworkBody::schema(), ProxyBody::schema())
    }
}

impl ToSchema for NewNetwork {
    fn name() -> Cow<'static, str> {
        "NewNetwork".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        NetworkBody::schemas(schemas);
    }
}

/// Changes what a sandbox that runs may reach, at once. Who may reach it stays as it was.
#[utoipa::path(
    put, path = "/v1/sandboxes/{id}/network", operation_id = "set_network", tag = "sandboxes",
    params(SandboxPath), request_body = NewNetwork,
    responses((status = 204, description = "It reaches that from now on."), Missing, Failing),
)]
pub(super) async fn put(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
    Body(body): Body<NetworkBody>,
) -> Result<StatusCode, Refused> {
    context.sandboxes.set_network(&owner, &id, body.try_into()?).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Default for NetworkBody {
    fn default() -> Self {
        Network::default().into()
    }
}

impl TryFrom<NetworkBody> for Network {
    type Error = ServiceError;

    fn try_from(body: NetworkBody) -> Result<Self, ServiceError> {
        let NetworkBody { internet, allow, deny, headers, dns_servers, egress_proxy, public, host, tls_ports } = body;
        let inbound = Inbound { needs_token: !public, host, tls_ports };
        let egress_proxy = egress_proxy.map(EgressProxy::try_from).transpose()?;
        Ok(Self { internet: Some(internet), allow, deny, headers, dns_servers, egress_proxy, inbound })
    }
}

impl TryFrom<ProxyBody> for EgressProxy {
    type Error = ServiceError;

    fn try_from(body: ProxyBody) -> Result<Self, ServiceError> {
        let ProxyBody { address, username, password, tls } = body;
        let tls = tls.map(|ProxyTlsBody { server_name, authority }| ProxyTls { server_name, authority });
        egress_proxy::wanted(address, username, password, tls)
    }
}

impl From<EgressProxy> for ProxyBody {
    fn from(proxy: EgressProxy) -> Self {
        let EgressProxy { address, credentials, tls } = proxy;
        let tls = tls.map(|tls| ProxyTlsBody { server_name: tls.server_name, authority: None });
        Self { address, username: credentials.map(|told| told.username), password: None, tls }
    }
}

impl From<Network> for NetworkBody {
    fn from(network: Network) -> Self {
        let Network { internet, allow, deny, headers, dns_servers, egress_proxy, inbound } = network;
        let Inbound { needs_token, host, tls_ports } = inbound;
        let internet = internet != Some(false);
        let egress_proxy = egress_proxy.map(ProxyBody::from);
        Self { internet, allow, deny, headers, dns_servers, egress_proxy, public: !needs_token, host, tls_ports }
    }
}
