//! A guest whose connections leave by a proxy.
#![expect(clippy::unwrap_used, reason = "tests")]

mod proxies;
mod web;
mod world;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;
use wrenn_net::{
    Authority, Egress, Interceptor, NetworkPolicy, ProxyFault, Refusal, Rule, Secret, Slot, UpstreamProxy,
};

use proxies::{Proxy, Speaks};
use web::{Client, tls};
use world::guest::Guest;
use world::servers::{all, sent_and_returned};
use world::{HOST, World, in_a_world};

const GOOD: &str = "93.184.216.34";
const GOOD_ADDRESS: [u8; 4] = [93, 184, 216, 34];
/// Where proxies are.
const PROXY: &str = "93.184.216.35";
const SCHEMES: [(&str, Speaks); 4] =
    [("socks5", Speaks::Socks5), ("http", Speaks::Http), ("socks5+tls", Speaks::Socks5), ("https", Speaks::Http)];
/// On a slow machine, too.
const SOON: Duration = Duration::from_secs(20);

/// A guest with secrets, and what it trusts.
struct Proxied {
    guest: Guest,
    egress: Egress,
    trusts: String,
}

impl Proxied {
    fn new(world: &World, servers: &web::Authority, policy: NetworkPolicy) -> Self {
        let authority = Authority::generate().unwrap();
        let trusts = authority.certificate().to_owned();
        let interceptor = Arc::new(Interceptor::new(authority).trust(servers.pem()).unwrap());
        let secrets = [("PASSWORD", "k/1"), ("WRONG", "k/2"), ("EMPTY", "")];
        let secrets = secrets.map(|(name, value)| (name.to_owned(), Secret::new(value)));
        let (slot, tap, gate) = Slot::create().unwrap();
        let egress = world.way_out(policy).intercept(interceptor, BTreeMap::from(secrets)).open(gate).unwrap();
        Self { guest: Guest::plug(slot, tap), egress, trusts }
    }
}

fn has_tls(scheme: &str) -> bool {
    ["socks5+tls", "https"].contains(&scheme)
}

fn through(proxy: &str) -> NetworkPolicy {
    NetworkPolicy::default().through(UpstreamProxy::of(proxy).unwrap())
}

/// Tells each connection where it comes from, and sends back what comes. Keeps whom it was reached by.
fn mirror(world: &World, at: &str) -> Arc<Mutex<Vec<IpAddr>>> {
    let (listener, peers) = (world.listen(at), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&peers);
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            kept.lock().unwrap().push(peer.ip());
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                write.write_all(b"mirror:").await?;
                tokio::io::copy(&mut read, &mut write).await?;
                write.shutdown().await
            });
        }
    });
    peers
}

async fn says(stream: &mut tokio::net::TcpStream, what: &[u8]) -> io::Result<()> {
    stream.write_all(what).await?;
    let mut back = vec![0; what.len()];
    stream.read_exact(&mut back).await?;
    assert_eq!(back, what);
    Ok(())
}

/// A connection to the mirror, which has begun.
async fn reflected(guest: &Guest) -> io::Result<tokio::net::TcpStream> {
    let mut stream = guest.connect(&format!("{GOOD}:80")).await?;
    let mut begin = [0; 7];
    stream.read_exact(&mut begin).await?;
    assert_eq!(&begin, b"mirror:");
    Ok(stream)
}

#[test]
fn each_kind_of_proxy_carries_connections_with_credentials_and_without() {
    in_a_world("each_kind_of_proxy_carries_connections_with_credentials_and_without", async |world| {
        let peers = mirror(&world, &format!("{GOOD}:80"));
        let servers = web::Authority::new("servers");
        let Proxied { guest, egress, .. } = Proxied::new(&world, &servers, NetworkPolicy::closed());
        let sent: Vec<u8> = (0..600_000_u32).map(|at| (at / 7).to_le_bytes()[0]).collect();
        let mut port = 1080;
        for (scheme, speaks) in SCHEMES {
            for credentials in ["", "ada:${secret.PASSWORD}@"] {
                port += 1;
                let acceptor = has_tls(scheme).then(|| servers.acceptor(&[PROXY], &[]));
                let proxy = Proxy::new(&world, speaks).within(acceptor);
                let proxy = if credentials.is_empty() { proxy } else { proxy.wants("ada:k/1") };
                let asked = proxy.serve(world.listen(&format!("{PROXY}:{port}")));
                egress.set_policy(through(&format!("{scheme}://{credentials}{PROXY}:{port}")));
                let mut stream = reflected(&guest).await.unwrap();
                assert!(sent_and_returned(&mut stream, &sent).await == sent, "{scheme} {credentials}");
                assert_eq!(*asked.lock().unwrap(), [format!("{GOOD}:80").parse().unwrap()], "{scheme} {credentials}");
            }
        }
        let peers = peers.lock().unwrap();
        assert!(peers.len() == 8 && !peers.contains(&HOST.into()), "something went around the proxy: {peers:?}");
        let counters = egress.counters();
        assert_eq!((counters.connections, counters.refusals), (8, 0));
        assert_eq!((counters.bytes_out, counters.bytes_in), (8 * 600_000, 8 * 600_007));
    });
}

#[test]
fn a_proxy_may_have_another_name_and_an_authority_of_its_own_and_be_on_the_host_itself() {
    let test = "a_proxy_may_have_another_name_and_an_authority_of_its_own_and_be_on_the_host_itself";
    in_a_world(test, async |world| {
        mirror(&world, &format!("{GOOD}:80"));
        let own = web::Authority::new("the proxy's");
        let Proxied { guest, egress, .. } =
            Proxied::new(&world, &web::Authority::new("servers"), NetworkPolicy::closed());
        // A guest reaches neither of these addresses by itself.
        for (host, listener) in [
            ("localhost", tokio::net::TcpListener::bind("127.0.0.1:3128").await.unwrap()),
            ("10.9.0.7", world.listen("10.9.0.7:3128")),
        ] {
            let acceptor = own.acceptor(&["proxy.example"], &[]);
            let asked = Proxy::new(&world, Speaks::Http).within(Some(acceptor)).serve(listener);
            let proxy = UpstreamProxy::of(&format!("https://{host}:3128")).unwrap();
            let proxy = proxy.server_name("proxy.example").unwrap().authority(own.pem()).unwrap();
            egress.set_policy(NetworkPolicy::default().through(proxy));
            says(&mut reflected(&guest).await.unwrap(), b"hello").await.unwrap();
            assert_eq!(asked.lock().unwrap().len(), 1, "{host}");
            for to in [&format!("{HOST}:3128"), "127.0.0.1:3128", "10.9.0.7:3128"] {
                assert!(guest.connect(to).await.is_err(), "{to}");
            }
            assert_eq!(asked.lock().unwrap().len(), 1, "{host}");
        }
    });
}

#[test]
fn a_proxy_that_is_held_to_the_policy_is_not_reached_in_a_private_network_or_on_the_host() {
    let test = "a_proxy_that_is_held_to_the_policy_is_not_reached_in_a_private_network_or_on_the_host";
    in_a_world(test, async |world| {
        mirror(&world, &format!("{GOOD}:80"));
        let serve = |listener| Proxy::new(&world, Speaks::Socks5).serve(listener);
        let mut asked: Vec<_> = ["10.9.0.7:1080", "169.254.169.254:1080", &format!("{PROXY}:1080")]
            .map(|at| serve(world.listen(at)))
            .into();
        for at in ["127.0.0.1", &HOST.to_string()] {
            asked.push(serve(tokio::net::TcpListener::bind((at, 1080)).await.unwrap()));
        }
        let (guest, egress) = world.guest(NetworkPolicy::closed());
        let held = |host: &str| {
            let proxy = UpstreamProxy::of(&format!("socks5://{host}:1080")).unwrap().held_to_policy();
            NetworkPolicy::default().through(proxy)
        };
        // A policy that was checked can be for a name that leads there later.
        for host in ["localhost", "127.0.0.1", &HOST.to_string(), "10.9.0.7", "169.254.169.254"] {
            egress.set_policy(held(host));
            let error = guest.connect(&format!("{GOOD}:80")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{host}: {error}");
            let Refusal::Proxy { fault, .. } = world.refusals().pop().unwrap().refusal else { panic!("{host}") };
            assert_eq!(fault, ProxyFault::Private, "{host}");
        }
        assert!(asked.iter().all(|asked| asked.lock().unwrap().is_empty()), "{asked:?}");
        for policy in [held(PROXY), held("10.9.0.7").allow(["10.9.0.0/16:1080"]).unwrap()] {
            egress.set_policy(policy);
            says(&mut reflected(&guest).await.unwrap(), b"hello").await.unwrap();
        }
        assert_eq!(asked.iter().map(|asked| asked.lock().unwrap().len()).sum::<usize>(), 2);
    });
}

#[test]
fn a_connect_means_what_the_proxy_says_of_it() {
    in_a_world("a_connect_means_what_the_proxy_says_of_it", async |world| {
        Proxy::new(&world, Speaks::Socks5).serve(world.listen(&format!("{PROXY}:1080")));
        Proxy::new(&world, Speaks::Http).serve(world.listen(&format!("{PROXY}:3128")));
        let (guest, egress) = world.guest(NetworkPolicy::closed());
        for (proxy, to, kind) in [
            ("socks5", "93.184.216.34:9", ErrorKind::ConnectionRefused),
            ("socks5", "93.99.99.99:80", ErrorKind::NetworkUnreachable),
            ("http", "93.184.216.34:9", ErrorKind::ConnectionRefused),
        ] {
            let port = if proxy == "http" { 3128 } else { 1080 };
            egress.set_policy(through(&format!("{proxy}://{PROXY}:{port}")));
            let error = guest.connect(to).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{proxy} {to}: {error}");
        }
        assert!(world.refusals().is_empty(), "the policy and the proxy have let each of them through");
    });
}

/// Sends this to each connection, and then reads what comes.
fn talk(world: &World, at: &str, what: Vec<u8>) {
    let listener = world.listen(at);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let what = what.clone();
            tokio::spawn(async move {
                stream.write_all(&what).await?;
                while stream.read(&mut [0; 4096]).await? > 0 {}
                io::Result::Ok(())
            });
        }
    });
}

#[test]
fn a_proxy_that_makes_no_connection_is_told_of_and_nothing_goes_around_it() {
    in_a_world("a_proxy_that_makes_no_connection_is_told_of_and_nothing_goes_around_it", async |world| {
        let peers = mirror(&world, &format!("{GOOD}:80"));
        let servers = web::Authority::new("servers");
        let nobodys = web::Authority::new("nobody's").acceptor(&[PROXY], &[]);
        let others = servers.acceptor(&["other.example"], &[]);
        for (port, speaks) in [(1080, Speaks::Socks5), (3128, Speaks::Http)] {
            Proxy::new(&world, speaks).wants("ada:k/1").serve(world.listen(&format!("{PROXY}:{port}")));
        }
        Proxy::new(&world, Speaks::Http).within(Some(nobodys)).serve(world.listen(&format!("{PROXY}:443")));
        Proxy::new(&world, Speaks::Http).within(Some(others)).serve(world.listen(&format!("{PROXY}:444")));
        talk(&world, &format!("{PROXY}:22"), b"SSH-2.0-test\r\n\r\n".repeat(1000));
        talk(&world, &format!("{PROXY}:23"), [b"HTTP/1.1 200 OK\r\n".to_vec(), b"a: b\r\n".repeat(100_000)].concat());
        talk(&world, &format!("{PROXY}:24"), b"HTTP/1.1 403 Forbidden\r\n\r\n".to_vec());
        let Proxied { guest, egress, .. } = Proxied::new(&world, &servers, NetworkPolicy::closed());
        for (proxy, fault) in [
            ("socks5://PROXY:1", ProxyFault::Unreachable),
            ("http://93.99.99.99:1", ProxyFault::Unreachable),
            ("socks5://PROXY:1080", ProxyFault::Credentials),
            ("socks5://ada:${secret.WRONG}@PROXY:1080", ProxyFault::Credentials),
            ("http://PROXY:3128", ProxyFault::Credentials),
            ("http://ada:${secret.WRONG}@PROXY:3128", ProxyFault::Credentials),
            ("http://ada:${secret.NONE}@PROXY:3128", ProxyFault::Secret),
            ("http://ada:${secret.EMPTY}@PROXY:3128", ProxyFault::Secret),
            ("https://PROXY:443", ProxyFault::Uncertified),
            ("https://PROXY:444", ProxyFault::Uncertified),
            ("https://PROXY:24", ProxyFault::Protocol),
            ("socks5://ada:${secret.PASSWORD}@PROXY:22", ProxyFault::Protocol),
            ("http://PROXY:22", ProxyFault::Protocol),
            ("http://PROXY:23", ProxyFault::Protocol),
            ("http://PROXY:24", ProxyFault::Forbidden),
        ] {
            egress.set_policy(through(&proxy.replace("PROXY", PROXY)));
            let error = guest.connect(&format!("{GOOD}:80")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{proxy}: {error}");
            let told = world.refusals();
            let text = format!("{told:?} {egress:?} {:?}", egress.policy());
            assert!(!text.contains("ada") && !text.contains("k/1") && !text.contains("k/2"), "{text}");
            let Refusal::Proxy { proxy: at, fault: is, .. } = &told.last().unwrap().refusal else { panic!("{text}") };
            assert_eq!(*is, fault, "{proxy}");
            assert!(at.contains("://93.") && proxy.starts_with(at.split("://").next().unwrap()), "{proxy}: {at}");
        }
        assert!(peers.lock().unwrap().is_empty(), "something went around the proxy");
        assert_eq!(egress.counters().open_connections, 0);
    });
}

#[test]
fn a_proxy_that_says_nothing_is_not_waited_for_without_end() {
    in_a_world("a_proxy_that_says_nothing_is_not_waited_for_without_end", async |world| {
        let _silent = world.listen(&format!("{PROXY}:1080"));
        let (guest, _egress) = world.guest(through(&format!("socks5+tls://{PROXY}:1080")));
        let other = world.guest(through(&format!("http://{PROXY}:1080")));
        let mut faults = Vec::new();
        let began = Instant::now();
        // The guest's kernel asks for longer than its programs wait.
        let to = format!("{GOOD}:80");
        let (first, second) = tokio::join!(guest.connect(&to), other.0.connect(&to));
        assert!(first.is_err() && second.is_err());
        // Each is told of more than once, where the guest has asked more than once.
        while !(faults.contains(&ProxyFault::Unreachable) && faults.contains(&ProxyFault::Silent)) {
            assert!(began.elapsed() < Duration::from_secs(150), "{faults:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            faults.extend(world.refusals().into_iter().filter_map(|refused| match refused.refusal {
                Refusal::Proxy { fault, .. } => Some(fault),
                _ => None,
            }));
        }
        assert!(faults.iter().all(|fault| [ProxyFault::Unreachable, ProxyFault::Silent].contains(fault)), "{faults:?}");
    });
}

#[test]
fn the_policy_decides_before_the_proxy_is_asked_and_tells_it_what_a_name_leads_to() {
    let test = "the_policy_decides_before_the_proxy_is_asked_and_tells_it_what_a_name_leads_to";
    in_a_world(test, async |world| {
        for address in [GOOD, "10.9.0.7", "169.254.169.254"] {
            world.answer(&format!("{address}:80"));
        }
        world.dns(&[("good.example", &[GOOD_ADDRESS]), ("inside.example", &[[10, 9, 0, 7]])]);
        let asked = Proxy::new(&world, Speaks::Socks5).serve(world.listen(&format!("{PROXY}:1080")));
        let proxy = UpstreamProxy::of(&format!("socks5://{PROXY}:1080")).unwrap();
        let (guest, egress) = world.guest(NetworkPolicy::default().deny([GOOD]).unwrap().through(proxy.clone()));
        for (to, why) in [
            (format!("{GOOD}:80"), Refusal::Denied(GOOD.parse().unwrap())),
            ("10.9.0.7:80".to_owned(), Refusal::Private),
            ("169.254.169.254:80".to_owned(), Refusal::Local),
            (format!("{HOST}:80"), Refusal::Local),
        ] {
            let error = guest.connect(&to).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
            assert_eq!(world.refusals().pop().unwrap().refusal, why, "{to}");
        }
        let named = NetworkPolicy::closed().allow(["good.example", "inside.example"]).unwrap().through(proxy);
        egress.set_policy(named);
        let said = async |host: &str| {
            let mut stream = guest.connect("5.5.5.5:80").await?;
            stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
            all(&mut stream).await
        };
        for (host, why) in [("inside.example", Refusal::Private), ("evil.example", Refusal::Name)] {
            assert!(said(host).await.is_err(), "{host}");
            assert_eq!(world.refusals().pop().unwrap().refusal, why, "{host}");
        }
        assert!(asked.lock().unwrap().is_empty(), "{asked:?}");
        assert_eq!(said("good.example").await.unwrap(), format!("{GOOD}:80"));
        assert_eq!(*asked.lock().unwrap(), [format!("{GOOD}:80").parse().unwrap()]);
    });
}

#[test]
fn rules_act_by_a_proxy_and_a_server_that_begins_is_heard() {
    in_a_world("rules_act_by_a_proxy_and_a_server_that_begins_is_heard", async |world| {
        let servers = web::Authority::new("servers");
        for address in [GOOD, PROXY] {
            servers.serve(world.listen(&format!("{address}:443")), &["api.example"], &["h2", "http/1.1"]);
        }
        world.greet(&format!("{GOOD}:22"));
        world.dns(&[("api.example", &[GOOD_ADDRESS])]);
        let mut port = 1080;
        for (scheme, speaks) in SCHEMES {
            port += 1;
            let acceptor = has_tls(scheme).then(|| servers.acceptor(&[PROXY], &[]));
            let asked = Proxy::new(&world, speaks).within(acceptor).serve(world.listen(&format!("{PROXY}:{port}")));
            let rule = |rule: Rule| rule.set_header("x-key", "${secret.PASSWORD}").unwrap();
            let policy = through(&format!("{scheme}://{PROXY}:{port}"));
            let policy = policy.rule(rule(Rule::of("api.example").unwrap())).unwrap();
            let policy = policy.rule(rule(Rule::of("api.example:22").unwrap())).unwrap();
            let proxied = Proxied::new(&world, &servers, policy);
            // The address is not the name's, and so another is asked for once the name is known.
            let stream = proxied.guest.connect(&format!("{PROXY}:443")).await.unwrap();
            let stream = tls(stream, "api.example", &proxied.trusts, &["h2"]).await.unwrap();
            let (_, said) = Client::over_tls(stream).await.get("https://api.example/", &[]).await;
            assert!(said.starts_with(GOOD) && said.contains("x-key: k/1"), "{scheme}: {said}");
            for protocol in ["h2", "http/1.1"] {
                let stream = proxied.guest.connect(&format!("{GOOD}:443")).await.unwrap();
                // A guest that is slow to speak, while the proxy's TLS says something of its own.
                tokio::time::sleep(Duration::from_millis(300)).await;
                let stream = tls(stream, "api.example", &proxied.trusts, &[protocol]).await.unwrap();
                let (status, said) = Client::over_tls(stream).await.get("https://api.example/", &[]).await;
                assert!(status == 200 && said.contains(protocol) && said.contains("x-key: k/1"), "{scheme}: {said}");
            }
            let mut greeted = proxied.guest.connect(&format!("{GOOD}:22")).await.unwrap();
            let heard = timeout(SOON, all(&mut greeted)).await.unwrap_or_else(|_| panic!("{scheme}: nothing is heard"));
            assert_eq!(heard.unwrap(), format!("{GOOD}:22"), "{scheme}");
            assert_eq!(asked.lock().unwrap().len(), 5, "{scheme}");
        }
    });
}

/// Asks up to three times, since a datagram may be lost.
async fn ask(socket: &UdpSocket, what: &[u8]) -> io::Result<usize> {
    for _ in 0..3 {
        socket.send(what).await?;
        if let Ok(len) = timeout(SOON, socket.recv(&mut [0; 4096])).await {
            return len;
        }
    }
    Err(ErrorKind::TimedOut.into())
}

#[test]
fn what_a_proxy_does_not_carry_is_refused_and_names_are_answered_as_ever() {
    in_a_world("what_a_proxy_does_not_carry_is_refused_and_names_are_answered_as_ever", async |world| {
        let heard = world.receive(&format!("{GOOD}:443"));
        tokio::spawn(async move {
            while let Ok((_, from)) = heard.recv_from(&mut [0; 64]).await {
                heard.send_to(b"b", from).await.ok();
            }
        });
        world.dns(&[("good.example", &[GOOD_ADDRESS])]);
        let (guest, egress) = world.guest(NetworkPolicy::default());
        let (udp, echo) = (guest.datagrams(&format!("{GOOD}:443")), guest.echoes(GOOD, 7));
        let request = [&[8, 0, 0, 0, 0, 7, 0, 1][..], b"ping"].concat();
        // Both are answered, and then no more: what is open ends with the change.
        ask(&udp, b"a").await.unwrap();
        ask(&echo, &request).await.unwrap();
        egress.set_policy(through(&format!("socks5://{PROXY}:1080")));
        for (socket, what) in [(&udp, &b"a"[..]), (&echo, &request)] {
            let began = Instant::now();
            // An answer that was on its way, and datagrams of before the flow had ended.
            let error = loop {
                assert!(began.elapsed() < SOON, "it is still answered");
                if let Err(error) = ask(socket, what).await {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
            assert_eq!(world.refusals().pop().unwrap().refusal, Refusal::NotByProxy);
        }
        // The policy comes first.
        ask(&guest.datagrams("10.9.0.7:443"), b"a").await.unwrap_err();
        assert_eq!(world.refusals().pop().unwrap().refusal, Refusal::Private);
        // Of a message with one question (RFC 1035): recursion desired, `good.example`, A, IN.
        let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04good\x07example\0\0\x01\0\x01";
        assert!(ask(&guest.datagrams("1.1.1.1:53"), question).await.unwrap() > question.len());
        let mut stream = guest.connect("1.1.1.1:53").await.unwrap();
        stream.write_all(&[&[0, 30][..], question].concat()).await.unwrap();
        let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        assert!(answer.len() > question.len());
        egress.set_policy(NetworkPolicy::default());
        ask(&guest.datagrams(&format!("{GOOD}:443")), b"a").await.unwrap();
        // Questions go on over a connection that was made while there was a proxy.
        stream.write_all(&[&[0, 30][..], question].concat()).await.unwrap();
        assert_eq!(usize::from(stream.read_u16().await.unwrap()), answer.len());
    });
}

#[test]
fn a_change_of_the_proxy_ends_what_leaves_by_another_way_and_no_other_change_does() {
    let test = "a_change_of_the_proxy_ends_what_leaves_by_another_way_and_no_other_change_does";
    in_a_world(test, async |world| {
        mirror(&world, &format!("{GOOD}:80"));
        let serve = |port: u16| Proxy::new(&world, Speaks::Socks5).serve(world.listen(&format!("{PROXY}:{port}")));
        let asked = [serve(1080), serve(1081)];
        let (guest, egress) = world.guest(NetworkPolicy::default());
        let ways =
            [NetworkPolicy::default(), through("socks5://93.184.216.35:1080"), through("socks5://93.184.216.35:1081")];
        for way in [0, 1, 2, 0, 2, 1] {
            egress.set_policy(ways[way].clone());
            let mut stream = reflected(&guest).await.unwrap();
            says(&mut stream, b"before").await.unwrap();
            egress.set_policy(ways[way].clone().deny(["8.8.8.8"]).unwrap());
            says(&mut stream, b"after").await.unwrap();
            egress.set_policy(ways[(way + 1) % 3].clone());
            let ended = timeout(SOON, stream.read_u8()).await.unwrap().unwrap_err();
            assert_eq!(ended.kind(), ErrorKind::ConnectionReset, "{way}");
        }
        assert_eq!(asked.map(|asked| asked.lock().unwrap().len()), [2, 2]);
    });
}
