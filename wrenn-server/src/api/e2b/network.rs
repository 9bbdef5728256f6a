//! E2B's network object, and ours.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::api::e2b::answer::Refused;
use crate::service::egress_proxy;
use crate::store::records::{EgressProxy, Hidden, Inbound, Network, ProxyTls};

/// As clients send and get it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NetworkBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_out: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deny_out: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<BTreeMap<String, Vec<RuleBody>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_public_traffic: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask_request_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    https_ports: Option<Vec<u16>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns_servers: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_proxy: Option<ProxyBody>,
    /// In a change alone; a create has it outside.
    #[serde(rename = "allow_internet_access", skip_serializing)]
    allow_internet_access: Option<bool>,
}

/// Its password and its authority are taken, and not told.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ProxyBody {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing)]
    password: Option<Hidden>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<ProxyTlsBody>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProxyTlsBody {
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
    #[serde(skip_serializing)]
    ca_cert: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct RuleBody {
    transform: Option<Transform>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Transform {
    headers: BTreeMap<String, String>,
}

impl NetworkBody {
    /// What was asked for, beside `internet`, which a create has outside of this.
    pub(super) fn wanted(self, internet: Option<bool>) -> Result<Network, Refused> {
        let (allow, deny) = (self.allow_out.unwrap_or_default(), self.deny_out.unwrap_or_default());
        if let Some(name) = deny.iter().find(|entry| !is_address(entry)) {
            return Err(Refused::bad_request(format!("invalid denied CIDR {name}")));
        }
        let internet = self.allow_internet_access.or(internet);
        let denies_all = internet == Some(false) || deny.iter().any(|entry| entry == ALL_TRAFFIC);
        let has_names = allow.iter().any(|entry| !is_address(entry));
        if !denies_all && has_names {
            return Err(Refused::bad_request(NAME_WITHOUT_DENY));
        }
        let dns_servers = self.dns_servers.map(addresses).transpose()?;
        // With none at all, a sandbox that reaches addresses goes on to ask servers by itself.
        let dns_servers = dns_servers.filter(|servers| has_names || !servers.is_empty());
        let https_ports = self.https_ports.unwrap_or_default();
        if https_ports.contains(&AGENT_PORT) {
            return Err(Refused::bad_request(format!("httpsPorts: {AGENT_PORT} is the agent's port")));
        }
        let inbound = Inbound {
            needs_token: self.allow_public_traffic == Some(false),
            host: self.mask_request_host,
            tls_ports: https_ports,
        };
        let headers = headers(self.rules.unwrap_or_default())?;
        let egress_proxy = self.egress_proxy.map(ProxyBody::wanted).transpose()?;
        Ok(Network { internet, allow, deny, headers, dns_servers, egress_proxy, inbound })
    }
}

impl From<&Network> for NetworkBody {
    fn from(network: &Network) -> Self {
        let some = |list: &Vec<String>| Some(list.clone()).filter(|list| !list.is_empty());
        let rules = network.headers.iter().map(|(host, headers)| {
            let transform = Some(Transform { headers: headers.clone() });
            (host.clone(), vec![RuleBody { transform }])
        });
        let rules: BTreeMap<_, _> = rules.collect();
        let dns_servers = network.dns_servers.as_ref();
        Self {
            allow_out: some(&network.allow),
            deny_out: some(&network.deny),
            rules: Some(rules).filter(|rules| !rules.is_empty()),
            allow_public_traffic: Some(!network.inbound.needs_token),
            dns_servers: dns_servers.map(|servers| servers.iter().map(ToString::to_string).collect()),
            mask_request_host: network.inbound.host.clone(),
            https_ports: Some(network.inbound.tls_ports.clone()).filter(|ports| !ports.is_empty()),
            egress_proxy: network.egress_proxy.as_ref().map(ProxyBody::from),
            ..Self::default()
        }
    }
}

impl ProxyBody {
    fn wanted(self) -> Result<EgressProxy, Refused> {
        let tls = self.tls.filter(|tls| tls.enabled);
        let tls = tls.map(|tls| ProxyTls { server_name: tls.server_name, authority: tls.ca_cert });
        Ok(egress_proxy::wanted(self.address, self.username, self.password, tls)?)
    }
}

impl From<&EgressProxy> for ProxyBody {
    fn from(proxy: &EgressProxy) -> Self {
        let EgressProxy { address, credentials, tls } = proxy.clone();
        let tls = tls.map(|tls| ProxyTlsBody { enabled: true, server_name: tls.server_name, ca_cert: None });
        Self { address, username: credentials.map(|told| told.username), password: None, tls }
    }
}

fn headers(rules: BTreeMap<String, Vec<RuleBody>>) -> Result<BTreeMap<String, BTreeMap<String, String>>, Refused> {
    if rules.len() > RULES_MAX {
        return Err(Refused::bad_request(format!("rules are for {RULES_MAX} names at most")));
    }
    let mut headers = BTreeMap::new();
    for (host, mut rules) in rules {
        let rule = rules.pop().unwrap_or_default();
        if !rules.is_empty() {
            return Err(Refused::bad_request(format!("rules: {host} has more than one transform")));
        }
        let set = rule.transform.unwrap_or_default().headers;
        if set.values().any(|value| value.contains("${e2b.")) {
            return Err(unbuilt("identity tokens in rules"));
        }
        if !set.is_empty() {
            headers.insert(host, set);
        }
    }
    Ok(headers)
}

/// The addresses of DNS servers.
fn addresses(servers: Vec<String>) -> Result<Vec<IpAddr>, Refused> {
    if servers.len() > DNS_SERVERS_MAX {
        return Err(Refused::bad_request(format!("dnsServers are {DNS_SERVERS_MAX} addresses at most")));
    }
    let address = |server: String| match server.parse::<Ipv4Addr>() {
        Ok(address) => Ok(address.into()),
        Err(_) => Err(Refused::bad_request(format!("invalid DNS server {server}: it is an IPv4 address"))),
    };
    servers.into_iter().map(address).collect()
}

/// Whether it is an address or a network of them, and no name.
fn is_address(entry: &str) -> bool {
    entry.parse::<IpAddr>().is_ok() || entry.parse::<ipnet::IpNet>().is_ok()
}

fn unbuilt(what: &str) -> Refused {
    Refused::new(StatusCode::NOT_IMPLEMENTED, format!("wrenn does not serve {what} yet: leave it out"))
}

const ALL_TRAFFIC: &str = "0.0.0.0/0";
/// E2B's own words.
const NAME_WITHOUT_DENY: &str = "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out \
                                 to block all other traffic.";
const AGENT_PORT: u16 = wrenn_envd::AGENT_PORT;
const RULES_MAX: usize = 10;
const DNS_SERVERS_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn wanted(body: Value) -> Result<Network, String> {
        let body: NetworkBody = serde_json::from_value(body).expect("a network");
        body.wanted(None).map_err(|refused| format!("{refused:?}"))
    }

    #[test]
    fn what_is_asked_for_comes_back() {
        let asked = serde_json::json!({
            "allowOut": ["pypi.org", "8.8.8.8"], "denyOut": ["0.0.0.0/0"], "allowPublicTraffic": false,
            "maskRequestHost": "x:${PORT}", "httpsPorts": [8443], "dnsServers": ["1.1.1.1"],
            "rules": {"*.example.com": [{"transform": {"headers": {"x-key": "v"}}}]},
        });
        let network = wanted(asked.clone()).expect("a network");
        assert!(network.inbound.needs_token && network.inbound.tls_ports == [8443]);
        assert_eq!(serde_json::to_value(NetworkBody::from(&network)).expect("JSON"), asked);
    }

    #[test]
    fn no_dns_servers_are_none_for_names_and_nothing_otherwise() {
        let none = |allow: &[&str]| {
            let body = serde_json::json!({"allowOut": allow, "denyOut": ["0.0.0.0/0"], "dnsServers": []});
            wanted(body).expect("a network").dns_servers
        };
        assert_eq!(none(&["pypi.org"]), Some(Vec::new()));
        assert_eq!(none(&["1.1.1.1"]), None);
        assert_eq!(wanted(serde_json::json!({"dnsServers": null})).expect("a network").dns_servers, None);
    }

    #[test]
    fn a_proxy_comes_back_without_its_password_and_its_authority() {
        let asked = serde_json::json!({"egressProxy": {
            "address": "proxy.example:1080", "username": "ada", "password": "hunter2",
            "tls": {"enabled": true, "serverName": "other.example", "caCert": "PEM"},
        }});
        let network = wanted(asked).expect("a network");
        let proxy = network.egress_proxy.as_ref().expect("a proxy");
        assert_eq!(proxy.credentials.as_ref().expect("credentials").password, Hidden("hunter2".to_owned()));
        assert_eq!(proxy.tls.as_ref().expect("TLS").authority.as_deref(), Some("PEM"));
        let told = serde_json::to_value(NetworkBody::from(&network)).expect("JSON");
        let expected = serde_json::json!({
            "address": "proxy.example:1080", "username": "ada", "tls": {"enabled": true, "serverName": "other.example"},
        });
        assert_eq!(told["egressProxy"], expected);
        let plain = serde_json::json!({"egressProxy": {"address": "a.example:1", "tls": {"enabled": false}}});
        assert_eq!(wanted(plain).expect("a network").egress_proxy.and_then(|proxy| proxy.tls), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_e2bs_words() {
        let refused = |body| wanted(body).expect_err("it is refused");
        assert!(refused(serde_json::json!({"denyOut": ["evil.example"]})).contains("invalid denied CIDR evil.example"));
        assert!(refused(serde_json::json!({"allowOut": ["pypi.org"]})).contains("ALL_TRAFFIC"));
        assert!(refused(serde_json::json!({"httpsPorts": [49983]})).contains("49983"));
        assert!(refused(serde_json::json!({"dnsServers": ["2606:4700::1"]})).contains("2606:4700::1"));
        assert!(refused(serde_json::json!({"dnsServers": ["dns.example"]})).contains("dns.example"));
        assert!(refused(serde_json::json!({"dnsServers": vec!["1.1.1.1"; 11]})).contains("10 addresses"));
        let lonely = serde_json::json!({"egressProxy": {"address": "a.example:1", "password": "hunter2"}});
        assert!(refused(lonely).contains("a username with it"));
        wanted(serde_json::json!({"egressProxy": null, "allowOut": ["1.1.1.1/32"]})).expect("a network");
    }
}
