use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn policy(allow: &[&str], deny: &[&str]) -> NetworkPolicy {
    NetworkPolicy::default().allow(allow).and_then(|policy| policy.deny(deny)).expect("entries")
}

fn tcp(policy: &NetworkPolicy, address: &str, port: u16) -> Verdict {
    policy.of_address(Protocol::Tcp, address.parse().expect("an address"), port, false)
}

fn refused(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Refused(_))
}

#[test]
fn by_default_the_public_internet_is_reached_and_nothing_else() {
    let policy = NetworkPolicy::default();
    assert_eq!(tcp(&policy, "93.184.216.34", 443), Verdict::Reached);
    for private in ["10.0.0.1", "192.168.0.1", "172.16.9.9", "100.64.0.1"] {
        assert_eq!(tcp(&policy, private, 443), Verdict::Refused(Refusal::Private), "{private}");
    }
    for local in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255"] {
        assert_eq!(tcp(&policy, local, 80), Verdict::Refused(Refusal::Local), "{local}");
    }
    let own = policy.of_address(Protocol::Tcp, Ipv4Addr::new(93, 184, 216, 34).into(), 443, true);
    assert_eq!(own, Verdict::Refused(Refusal::Local));
}

#[test]
fn what_is_allowed_comes_before_what_is_denied_and_that_before_the_default() {
    let policy = policy(&["93.184.216.34:443"], &["93.184.216.0/24"]);
    assert_eq!(tcp(&policy, "93.184.216.34", 443), Verdict::Reached);
    assert!(refused(&tcp(&policy, "93.184.216.34", 80)) && refused(&tcp(&policy, "93.184.216.35", 443)));
    assert_eq!(tcp(&policy, "93.184.217.1", 80), Verdict::Reached);
}

#[test]
fn a_private_network_is_reached_where_it_is_named_and_the_host_never() {
    let policy = policy(&["10.2.0.0/16:5432", "0.0.0.0/0", "*", "127.0.0.0/8", "169.254.169.254"], &[]);
    assert_eq!(tcp(&policy, "10.2.0.7", 5432), Verdict::Reached);
    for (address, port) in [("10.2.0.7", 80), ("10.3.0.1", 5432), ("127.0.0.1", 80), ("169.254.169.254", 80)] {
        assert!(refused(&tcp(&policy, address, port)), "{address}:{port}");
    }
}

#[test]
fn what_is_said_of_everything_is_said_of_ipv6_too() {
    let (v4, v6) = ("93.184.216.34", "2606:2800::34");
    for (entry, expected) in [("*", [false, false]), ("0.0.0.0/0", [false, false]), ("::/0", [true, false])] {
        let denies = policy(&[], &[entry]);
        assert_eq!([v4, v6].map(|address| tcp(&denies, address, 443) == Verdict::Reached), expected, "{entry}");
        assert_eq!(denies.may_ask("example.com"), expected[0], "{entry}");
    }
    let allows = policy(&["0.0.0.0/0:443", "fd00:9::/32", "10.2.0.0/16"], &["*"]);
    for address in [v4, v6, "fd00:9::1", "::ffff:10.2.0.1", "64:ff9b::10.2.0.1", "2002:a02:1::1"] {
        assert_eq!(tcp(&allows, address, 443), Verdict::Reached, "{address}");
    }
    for address in
        ["fd01::1", "::ffff:10.3.0.1", "64:ff9b:1::10.2.0.1", "::ffff:127.0.0.1", "::1", "fe80::1", "ff0e::1"]
    {
        assert!(refused(&tcp(&allows, address, 443)), "{address}");
    }
}

#[test]
fn an_entry_with_a_port_or_another_protocol_is_not_about_echo_requests() {
    let echo = |policy: &NetworkPolicy, address: &str| {
        policy.of_address(Protocol::Icmp, address.parse().expect("an address"), 0, false)
    };
    let allows = policy(&["8.8.8.8:53", "tcp://8.8.4.4", "1.1.1.1", "icmp://9.9.9.9"], &["*"]);
    for (address, is_reached) in [("8.8.8.8", false), ("8.8.4.4", false), ("1.1.1.1", true), ("9.9.9.9", true)] {
        assert_eq!(echo(&allows, address) == Verdict::Reached, is_reached, "{address}");
    }
    assert!(refused(&tcp(&allows, "9.9.9.9", 443)));
    let denies = policy(&[], &["*:25", "udp://*", "icmp://9.9.9.9"]);
    for (address, is_reached) in [("8.8.8.8", true), ("9.9.9.9", false), ("10.0.0.1", false)] {
        assert_eq!(echo(&denies, address) == Verdict::Reached, is_reached, "{address}");
    }
}

#[test]
fn a_closed_policy_lets_names_through_and_asks_for_no_others() {
    let policy = NetworkPolicy::closed().allow(["api.example.com:443", "*.example.org"]).expect("entries");
    assert_eq!(tcp(&policy, "93.184.216.34", 443), Verdict::Named);
    assert_eq!(tcp(&policy, "93.184.216.34", 25), Verdict::Named, "below example.org");
    assert!(policy.has_name(Protocol::Tcp, "api.example.com", 443));
    assert!(!policy.has_name(Protocol::Tcp, "api.example.com", 80));
    for (name, may) in
        [("api.example.com", true), ("x.example.org", true), ("example.org", false), ("evil.test", false)]
    {
        assert_eq!(policy.may_ask(name), may, "{name}");
    }
    assert!(NetworkPolicy::default().may_ask("evil.test"));
    assert!(refused(&tcp(&NetworkPolicy::closed(), "93.184.216.34", 443)));
}

#[test]
fn what_has_no_effect_is_an_error() {
    let named = NetworkPolicy::default().allow(["example.com"]).expect("an entry");
    assert!(matches!(named.check(), Err(PolicyError::NameWithoutDeny { .. })));
    assert!(matches!(NetworkPolicy::default().deny(["example.com"]), Err(PolicyError::DeniedName { .. })));
    // As a record could have it.
    let read = NetworkPolicy { deny: vec!["example.com".parse().expect("an entry")], ..NetworkPolicy::default() };
    assert!(matches!(read.check(), Err(PolicyError::DeniedName { .. })));
    assert_eq!(policy(&["example.com"], &["*"]).check(), Ok(()));
}

/// What the documentation says, in its own order and without a clever step.
fn naive(allow: &[PolicyEntry], deny: &[PolicyEntry], protocol: Protocol, address: Ipv4Addr, port: u16) -> bool {
    let of = |range: [u8; 2]| address.octets()[..2] == range;
    let is_local = address.octets()[0] == 127 || of([169, 254]);
    let is_private = address.octets()[0] == 10 || of([192, 168]);
    let matches = |entry: &&PolicyEntry| entry.has_address(protocol, address.into(), port);
    if is_local {
        return false;
    }
    if allow.iter().any(|entry| matches(&entry) && (!is_private || entry.is_private())) {
        return true;
    }
    !is_private && !deny.iter().any(|entry| matches(&entry))
}

/// Few networks, so that they meet.
fn entries() -> impl Strategy<Value = Vec<PolicyEntry>> {
    let host = prop::sample::select(vec!["*", "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "93.0.0.0/8", "93.184.216.34"]);
    let ports = prop::sample::select(vec!["", ":80", ":80-443", ":443"]);
    let protocol = prop::sample::select(vec!["", "tcp://", "udp://"]);
    let entry = (protocol, host, ports).prop_map(|(a, b, c)| format!("{a}{b}{c}").parse().expect("an entry"));
    prop::collection::vec(entry, 0..4)
}

proptest! {
    #[test]
    fn policies_say_what_the_documentation_says(
        allow in entries(),
        deny in entries(),
        is_tcp: bool,
        address in prop::sample::select(vec![[10, 1, 0, 1], [10, 9, 0, 1], [93, 184, 216, 34], [93, 1, 1, 1], [8, 8, 8, 8],
            [127, 0, 0, 1], [169, 254, 169, 254], [192, 168, 1, 1]]),
        port in prop::sample::select(vec![25_u16, 80, 100, 443]),
    ) {
        let (protocol, address) = (if is_tcp { Protocol::Tcp } else { Protocol::Udp }, Ipv4Addr::from(address));
        let expected = naive(&allow, &deny, protocol, address, port);
        let policy = NetworkPolicy { allow, deny, ..NetworkPolicy::default() };
        let verdict = policy.of_address(protocol, address.into(), port, false);
        prop_assert_eq!(verdict == Verdict::Reached, expected, "{:?}", policy);
    }
}

const HOSTS: [&str; 7] = ["b.a.x", "a.x", "*.b.a.x", "*.a.x", "*.x", "c.b.a.x:443", "*.a.x:8443"];

proptest! {
    #[test]
    fn the_rules_of_a_name_are_those_of_the_closest_host(
        hosts in prop::collection::vec(prop::sample::select(&HOSTS[..]), 0..6),
        name in prop::sample::select(vec!["x", "a.x", "b.a.x", "c.b.a.x", "d.c.b.a.x", "ba.x", "y"]),
        port in prop::sample::select(vec![80_u16, 443, 8443]),
    ) {
        let rule = |host: &&str| Rule::of(host).and_then(|rule| rule.set_header("a", "b")).expect("a rule");
        let policy = NetworkPolicy { rules: hosts.iter().map(rule).collect(), ..NetworkPolicy::default() };
        // From the name itself up, one label after the other.
        let labels: Vec<&str> = name.split('.').collect();
        let above = (1..labels.len()).map(|from| format!("*.{}", labels[from..].join(".")));
        let mut candidates = std::iter::once(name.to_owned()).chain(above);
        let is_at = |host: &str, candidate: &str| match host.split_once(':') {
            Some((host, own)) => host == candidate && own == port.to_string(),
            None => host == candidate && port != 8443,
        };
        let expected = candidates.find_map(|candidate| {
            let count = hosts.iter().filter(|host| is_at(host, &candidate)).count();
            (count > 0).then_some(count)
        });
        prop_assert_eq!(policy.rules_of(name, port).count(), expected.unwrap_or_default());
        prop_assert!(expected.is_none() || policy.has_rules_at(port));
    }
}

#[test]
fn a_record_without_rules_is_as_it_was() {
    let text = serde_json::to_string(&NetworkPolicy::closed()).expect("JSON");
    assert_eq!(text, r#"{"allow":[],"deny":["*"]}"#);
    assert_eq!(serde_json::from_str::<NetworkPolicy>(&text).expect("a policy"), NetworkPolicy::closed());
}

#[test]
fn a_proxy_is_kept_with_the_policy_and_changes_nothing_of_what_is_decided() {
    let proxy = UpstreamProxy::of("socks5://ada:${secret.KEY}@10.0.0.1:1080").expect("a proxy");
    let through = NetworkPolicy::closed().through(proxy);
    let text = serde_json::to_string(&through).expect("JSON");
    let expected = r#"{"allow":[],"deny":["*"],"proxy":{"url":"socks5://10.0.0.1:1080","username":"ada","password":"${secret.KEY}"}}"#;
    assert_eq!(text, expected);
    assert_eq!(serde_json::from_str::<NetworkPolicy>(&text).expect("a policy"), through);
    let verdict = |address: [u8; 4]| through.of_address(Protocol::Tcp, address.into(), 1080, false);
    assert_eq!(
        verdict([10, 0, 0, 1]),
        NetworkPolicy::closed().of_address(Protocol::Tcp, [10, 0, 0, 1].into(), 1080, false)
    );
}

#[test]
fn dns_servers_are_kept_with_the_policy_and_held_to_it() {
    let asking = |servers: &[&str]| {
        NetworkPolicy::default().with_dns_servers(servers.iter().map(|server| server.parse().expect("an address")))
    };
    let text = serde_json::to_string(&asking(&["9.9.9.9"])).expect("JSON");
    assert_eq!(text, r#"{"allow":[],"deny":[],"dns_servers":["9.9.9.9"]}"#);
    assert_eq!(serde_json::from_str::<NetworkPolicy>(&text).expect("a policy"), asking(&["9.9.9.9"]));
    assert_eq!(asking(&[]).check(), Ok(()));
    assert_eq!(asking(&["9.9.9.9"; 10]).check(), Ok(()));
    assert_eq!(asking(&["9.9.9.9"; 11]).check(), Err(PolicyError::DnsServers { max: 10 }));
    for server in ["10.2.0.53", "127.0.0.53", "169.254.169.254", "fd00::53", "::ffff:10.2.0.53", "64:ff9b::7f00:1"] {
        let error = asking(&["9.9.9.9", server]).check().expect_err(server);
        assert!(matches!(error, PolicyError::DnsServer { .. }), "{error:?}");
    }
    for (entry, may) in [("10.2.0.53", true), ("10.2.0.0/16:53", true), ("udp://10.2.0.53", false), ("*", false)] {
        let policy = asking(&["10.2.0.53"]).allow([entry]).expect("an entry");
        assert_eq!(policy.check().is_ok(), may, "{entry}");
    }
    let local = asking(&["127.0.0.53"]).allow(["127.0.0.0/8"]).expect("an entry");
    assert!(local.check().is_err(), "the loopback is no network that can be allowed");
    // A closed policy asks them, as it does the host's.
    let closed = NetworkPolicy::closed().with_dns_servers([Ipv4Addr::new(9, 9, 9, 9).into()]);
    assert_eq!(closed.check(), Ok(()));
}

#[test]
fn a_proxy_that_is_held_to_the_policy_is_public_or_allowed() {
    let held = |url: &str| NetworkPolicy::default().through(UpstreamProxy::of(url).expect("a proxy").held_to_policy());
    let text = serde_json::to_string(&held("socks5://93.184.216.34:1080")).expect("JSON");
    let expected = r#"{"allow":[],"deny":[],"proxy":{"url":"socks5://93.184.216.34:1080","held_to_policy":true}}"#;
    assert_eq!(text, expected);
    // A name is looked at when it is dialled.
    for at in ["93.184.216.34", "[2606:2800::34]", "localhost", "proxy.example"] {
        assert_eq!(held(&format!("socks5://{at}:1080")).check(), Ok(()), "{at}");
    }
    for at in ["10.2.0.7", "127.0.0.1", "169.254.169.254", "[fd00::1]", "[::1]", "[::ffff:10.2.0.7]"] {
        let url = format!("socks5+tls://{at}:1080");
        assert!(matches!(held(&url).check(), Err(PolicyError::Proxy { .. })), "{at}");
        let any = NetworkPolicy::default().through(UpstreamProxy::of(&url).expect("a proxy"));
        assert_eq!(any.check(), Ok(()), "{at}");
    }
    for (entry, may) in [("10.2.0.7", true), ("10.2.0.0/16:1080", true), ("10.2.0.7:80", false), ("*", false)] {
        let policy = held("socks5://10.2.0.7:1080").allow([entry]).expect("an entry");
        assert_eq!(policy.check().is_ok(), may, "{entry}");
    }
    let local = held("socks5://127.0.0.1:1080").allow(["127.0.0.0/8"]).expect("an entry");
    assert!(local.check().is_err(), "the loopback is no network that can be allowed");
}
