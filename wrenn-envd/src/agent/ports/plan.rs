use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// What to change about the published ports. Ports are closed first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Each port, and where its connections go.
    pub(super) open: BTreeMap<u16, SocketAddr>,
    pub(super) close: BTreeSet<u16>,
}

/// Decides by who listens, and by what is published on `address` already.
pub(super) fn plan(address: IpAddr, listeners: &[SocketAddr], ours: &BTreeMap<u16, SocketAddr>) -> Plan {
    let is_reachable = |port: u16| {
        listeners.iter().any(|listener| {
            // What listens on our address is ours, or a program's own.
            let is_there = listener.ip().is_unspecified() || (listener.ip() == address && !ours.contains_key(&port));
            listener.port() == port && is_there
        })
    };
    let mut wanted = BTreeMap::new();
    for target in LOOPBACKS.into_iter().flat_map(|ip| listeners.iter().filter(move |listener| listener.ip() == ip)) {
        if !is_reachable(target.port()) {
            wanted.entry(target.port()).or_insert(*target);
        }
    }
    let differs = |port: &u16, target: &SocketAddr, other: &BTreeMap<u16, SocketAddr>| other.get(port) != Some(target);
    Plan {
        close: ours.iter().filter(|(port, target)| differs(port, target, &wanted)).map(|(port, _)| *port).collect(),
        open: wanted.into_iter().filter(|(port, target)| differs(port, target, ours)).collect(),
    }
}

/// The one that is tried first where both listen. Other addresses of the loopback are for what must not be found, such as
/// a resolver at 127.0.0.53.
const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(crate::protocol::GUEST_ADDRESS);

    fn planned(listeners: &[&str], ours: &[&str]) -> (Vec<String>, Vec<u16>) {
        let parse = |text: &&str| text.parse::<SocketAddr>().unwrap();
        let listeners: Vec<_> = listeners.iter().map(parse).collect();
        let ours = ours.iter().map(parse).map(|target| (target.port(), target)).collect();
        let plan = plan(ADDRESS, &listeners, &ours);
        (plan.open.values().map(ToString::to_string).collect(), plan.close.into_iter().collect())
    }

    #[test]
    fn opens_what_listens_on_loopback_alone() {
        let listeners = ["127.0.0.1:80", "[::1]:81", "0.0.0.0:82", "127.0.0.1:82", "127.0.0.53:53", "169.254.0.21:83"];
        assert_eq!(planned(&listeners, &[]), (vec!["127.0.0.1:80".into(), "[::1]:81".into()], vec![]));
        assert_eq!(planned(&["[::]:80", "127.0.0.1:80", "127.0.0.1:83", "169.254.0.21:83"], &[]), (vec![], vec![]));
        assert_eq!(planned(&["[::1]:80", "127.0.0.1:80"], &[]).0, ["127.0.0.1:80"]);
    }

    #[test]
    fn closes_what_listens_no_more_and_follows_what_moves() {
        assert_eq!(planned(&["127.0.0.1:80", "169.254.0.21:80"], &["127.0.0.1:80"]), (vec![], vec![]));
        assert_eq!(planned(&["169.254.0.21:80"], &["127.0.0.1:80"]), (vec![], vec![80]));
        let moved = planned(&["[::1]:80", "169.254.0.21:80"], &["127.0.0.1:80"]);
        assert_eq!(moved, (vec!["[::1]:80".into()], vec![80]));
        assert_eq!(planned(&["0.0.0.0:80", "127.0.0.1:80"], &["127.0.0.1:80"]), (vec![], vec![80]));
    }

    proptest! {
        /// Carrying a plan out leaves nothing to do.
        #[test]
        fn a_plan_that_is_carried_out_is_done(
            listeners in prop::collection::vec((0_usize..5, 1_u16..6), 0..12),
            before in prop::collection::btree_map(1_u16..6, 0_usize..2, 0..5),
        ) {
            let ips = ["127.0.0.1", "::1", "0.0.0.0", "10.0.0.1", "127.0.0.9"].map(|ip| ip.parse::<IpAddr>().unwrap());
            let mut all: Vec<_> = listeners.iter().map(|(ip, port)| SocketAddr::new(ips[*ip], *port)).collect();
            let mut ours: BTreeMap<_, _> =
                before.iter().map(|(port, ip)| (*port, SocketAddr::new(ips[*ip], *port))).collect();
            let Plan { open, close } = plan(ADDRESS, &all, &ours);
            ours.retain(|port, _| !close.contains(port));
            prop_assert!(open.keys().all(|port| !ours.contains_key(port)), "a port is closed before it is opened");
            ours.extend(open);
            all.extend(ours.keys().map(|port| SocketAddr::new(ADDRESS, *port)));
            prop_assert_eq!(plan(ADDRESS, &all, &ours), Plan::default());
        }
    }
}
