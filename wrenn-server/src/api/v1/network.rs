//! What a sandbox may reach, and who may reach it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::state::Context;
use crate::api::v1::answer::Refused;
use crate::api::v1::body::Body;
use crate::api::v1::owner::Owner;
use crate::api::v1::path::SandboxPath;
use crate::api::v1::refusals::{Failing, Missing};
use crate::store::records::{Inbound, Network};

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
    #[schema(value_type = Option<Vec<String>>, example = json!(["9.9.9.9"]))]
    dns_servers: Option<Vec<IpAddr>>,
    /// Whether requests to the sandbox's ports need no token.
    #[schema(default = true)]
    public: bool,
    /// The `Host` that the sandbox's servers are shown: `localhost:${PORT}` where none is given.
    host: Option<String>,
    /// The ports on which the sandbox's servers speak TLS.
    tls_ports: Vec<u16>,
}

/// Changes what a sandbox that runs may reach, at once. Who may reach it stays as it was.
#[utoipa::path(
    put, path = "/v1/sandboxes/{id}/network", operation_id = "set_network", tag = "sandboxes",
    params(SandboxPath), request_body = NetworkBody,
    responses((status = 204, description = "It reaches that from now on."), Missing, Failing),
)]
pub(super) async fn put(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
    Body(body): Body<NetworkBody>,
) -> Result<StatusCode, Refused> {
    context.sandboxes.set_network(&owner, &id, body.into()).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Default for NetworkBody {
    fn default() -> Self {
        Network::default().into()
    }
}

impl From<NetworkBody> for Network {
    fn from(body: NetworkBody) -> Self {
        let NetworkBody { internet, allow, deny, headers, dns_servers, public, host, tls_ports } = body;
        let inbound = Inbound { needs_token: !public, host, tls_ports };
        Self { internet: Some(internet), allow, deny, headers, dns_servers, inbound }
    }
}

impl From<Network> for NetworkBody {
    fn from(network: Network) -> Self {
        let Network { internet, allow, deny, headers, dns_servers, inbound } = network;
        let Inbound { needs_token, host, tls_ports } = inbound;
        let internet = internet != Some(false);
        Self { internet, allow, deny, headers, dns_servers, public: !needs_token, host, tls_ports }
    }
}
