//! What a guest reaches by IPv6, and what it does not.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod world;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use etherparse::{Icmpv6Type, PacketBuilder};
use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;
use wrenn_net::{
    Destination, Egress, GUEST_ADDRESS_V6, HOST_ADDRESS_V6, NetworkPolicy, OpenConnection, Protocol, Refusal, Refused,
};

use world::client_hello::client_hello;
use world::guest::{Guest, send_by_hand};
use world::servers::{all, sent_and_returned};
use world::{HOST_V6, Namespace, World, in_a_world};

const GOOD: &str = "2606:2800::34";
const OTHER: &str = "2606:2800::35";
const PRIVATE: &str = "fd00:9::7";
const PATIENCE: Duration = Duration::from_secs(30);

/// A guest and its way out, in a world whose slots have IPv6; `None`, with a word, where the kernel has not.
fn guest(test: &str, world: &World, policy: NetworkPolicy) -> Option<(Guest, Egress)> {
    let (guest, egress) = world.guest(policy);
    if !egress.has_ipv6() {
        println!("skipped: {test}: this kernel has no IPv6, or cannot lead it to a program");
        return None;
    }
    Some((guest, egress))
}

/// The host's own network is as that of one that has IPv4 alone.
fn take_ipv6_from_host() {
    let host = Namespace::of_this_thread();
    host.run(|| std::fs::write("/proc/sys/net/ipv6/conf/host0/disable_ipv6", "1").unwrap());
}

fn destination(refused: &Refused) -> String {
    match &refused.destination {
        Destination::Address { address, .. } => address.to_string(),
        Destination::Echo { address, .. } => address.to_string(),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_server_is_reached_and_each_end_is_passed_on() {
    const TEST: &str = "a_server_is_reached_and_each_end_is_passed_on";
    in_a_world(TEST, async |world| {
        world.echo(&format!("[{GOOD}]:8443"));
        let Some((guest, egress)) = guest(TEST, &world, NetworkPolicy::default()) else { return };
        let mut stream = guest.connect(&format!("[{GOOD}]:8443")).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), IpAddr::V6(GUEST_ADDRESS_V6));
        let sent: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7).to_le_bytes()[0]).collect();
        assert!(sent_and_returned(&mut stream, &sent).await == sent);
        let counters = egress.counters();
        assert_eq!((counters.bytes_out, counters.bytes_in), (3_000_000, 3_000_000));
        assert_eq!((counters.connections, counters.refusals), (1, 0));
    });
}

#[test]
fn a_connect_means_what_it_says() {
    const TEST: &str = "a_connect_means_what_it_says";
    in_a_world(TEST, async |world| {
        world.greet(&format!("[{GOOD}]:22"));
        let Some((guest, egress)) = guest(TEST, &world, NetworkPolicy::default()) else { return };
        for (to, kind) in [
            (format!("[{GOOD}]:9"), ErrorKind::ConnectionRefused),
            // The internet knows no such network.
            ("[2606:dead::1]:80".to_owned(), ErrorKind::NetworkUnreachable),
            (format!("[{HOST_ADDRESS_V6}]:80"), ErrorKind::ConnectionRefused),
            (format!("[{HOST_ADDRESS_V6}]:53"), ErrorKind::ConnectionRefused),
        ] {
            let error = guest.connect(&to).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{to}: {error}");
        }
        assert_eq!((egress.counters().open_connections, egress.counters().refusals), (0, 0));
        let mut stream = guest.connect(&format!("[{GOOD}]:22")).await.unwrap();
        assert_eq!(all(&mut stream).await.unwrap(), format!("[{GOOD}]:22"), "a server that begins is heard");
    });
}

#[test]
fn a_host_without_ipv6_says_so_at_once() {
    const TEST: &str = "a_host_without_ipv6_says_so_at_once";
    in_a_world(TEST, async |world| {
        world.dns(&[]).lock().unwrap().insert("both.example".to_owned(), both());
        take_ipv6_from_host();
        let Some((guest, _egress)) = guest(TEST, &world, NetworkPolicy::default()) else { return };
        let error = guest.connect(&format!("[{GOOD}]:80")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
        let error = ask(&guest.datagrams(&format!("[{GOOD}]:443")), b"a").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        let error = ask_echo(&guest.echoes(GOOD, 1), 1, b"a").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
        assert_eq!(look_up(&guest, "both.example.", RecordType::AAAA).await, (ResponseCode::NoError, vec![]));
        assert_eq!(look_up(&guest, "both.example.", RecordType::A).await.1.len(), 1);
    });
}

#[test]
fn the_host_and_private_networks_are_refused_however_they_are_written() {
    const TEST: &str = "the_host_and_private_networks_are_refused_however_they_are_written";
    in_a_world(TEST, async |world| {
        world.echo(&format!("[{PRIVATE}]:80"));
        world.echo("[64:ff9b::10.9.0.7]:80");
        let own = tokio::net::TcpListener::bind((HOST_V6, 80)).await.unwrap();
        let Some((guest, egress)) = guest(TEST, &world, NetworkPolicy::default()) else { return };
        let host = HOST_V6.to_string();
        let classes = [
            (&*host, Refusal::Local),
            (PRIVATE, Refusal::Private),
            ("fc00::1", Refusal::Private),
            ("fec0:1::1", Refusal::Private),
            ("2001:db8::1", Refusal::Private),
            ("3fff::1", Refusal::Private),
            ("2001::1", Refusal::Private),
            ("100::1", Refusal::Private),
            ("4000::1", Refusal::Private),
            // IPv4 in IPv6: the host's address, its loopback, its link, and a private network.
            ("64:ff9b::192.0.2.1", Refusal::Local),
            ("64:ff9b::127.0.0.1", Refusal::Local),
            ("2002:a9fe:a9fe::1", Refusal::Local),
            ("64:ff9b::10.9.0.7", Refusal::Private),
            ("2002:a09:7::1", Refusal::Private),
            ("64:ff9b:1::10.9.0.7", Refusal::Private),
        ];
        for (address, why) in &classes {
            let to = format!("[{address}]:80");
            let error = guest.connect(&to).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
            let told = world.refusals();
            assert!(told.last().is_some_and(|refused| refused.refusal == *why), "{to}: {told:?}");
        }
        // What the guest's own kernel does not send there.
        for (address, why) in [
            ("::ffff:10.9.0.7", Refusal::Private),
            ("::ffff:127.0.0.1", Refusal::Local),
            ("::ffff:192.0.2.1", Refusal::Local),
            ("fe80::1", Refusal::Local),
            ("ff0e::1", Refusal::Local),
        ] {
            let address: Ipv6Addr = address.parse().unwrap();
            let refused = refused_by_hand(&world, &guest, &syn(GUEST_ADDRESS_V6, address)).await.pop().unwrap();
            assert_eq!((destination(&refused), &refused.refusal), (format!("[{address}]:80"), &why));
        }
        assert_eq!(egress.counters().connections, 0);
        drop(own);
        // Where the policy names it, a private network is reached.
        egress.set_policy(NetworkPolicy::default().allow(["[fd00:9::/32]:80"]).unwrap());
        guest.connect(&format!("[{PRIVATE}]:80")).await.unwrap();
        // By what it stands for, too.
        egress.set_policy(NetworkPolicy::default().allow(["10.9.0.0/16"]).unwrap());
        guest.connect("[64:ff9b::10.9.0.7]:80").await.unwrap();
        egress.set_policy(NetworkPolicy::default().deny(["0.0.0.0/0"]).unwrap());
        let error = guest.connect(&format!("[{GOOD}]:80")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    });
}

fn syn(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(from.octets(), to.octets(), 64).tcp(4000, 80, 1, 1000).syn();
    builder.write_to_vec(&mut packet, &[]).unwrap();
    packet
}

/// Sends a packet until something is refused, and returns all that was.
async fn refused_by_hand(world: &World, guest: &Guest, packet: &[u8]) -> Vec<Refused> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        guest.namespace.run(|| send_by_hand(packet));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let refused = world.refusals();
        if !refused.is_empty() {
            return refused;
        }
    }
    panic!("nothing was refused");
}

#[test]
fn what_has_another_source_or_extension_headers_is_not_heard() {
    const TEST: &str = "what_has_another_source_or_extension_headers_is_not_heard";
    in_a_world(TEST, async |world| {
        let Some((guest, egress)) = guest(TEST, &world, NetworkPolicy::default()) else { return };
        let private: Ipv6Addr = PRIVATE.parse().unwrap();
        let extended = |kind: u8| {
            let whole = syn(GUEST_ADDRESS_V6, private);
            let (header, tcp) = whole.split_at(40);
            let (mut header, extension) = (header.to_vec(), [6, 0, 1, 4, 0, 0, 0, 0]);
            header[5] += 8;
            header[6] = kind;
            [&header, &extension[..], tcp].concat()
        };
        let of_link = "fe80::57:52ff:fe45:4e15".parse().unwrap();
        let silent = [
            syn(of_link, private),
            syn("fec0::17".parse().unwrap(), private),
            syn(HOST_ADDRESS_V6, private),
            // Hop-by-hop options, and options for the destination.
            extended(0),
            extended(60),
        ];
        for packet in &silent {
            guest.namespace.run(|| send_by_hand(packet));
        }
        // Packets come in order, so those before the one that is told of have come as well.
        let told = refused_by_hand(&world, &guest, &syn(GUEST_ADDRESS_V6, "fc00::5".parse().unwrap())).await;
        assert!(told.iter().all(|refused| destination(refused) == "[fc00::5]:80"), "{told:?}");
        assert_eq!(egress.counters().connections, 0);
    });
}

/// What a kernel says of its own IPv6, in a slot's namespace.
fn of_slot(guest: &Guest, file: &str) -> String {
    std::thread::scope(|scope| {
        let read = || {
            setns(guest.slot.namespace(), CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap()
        };
        scope.spawn(read).join().unwrap()
    })
}

#[test]
fn what_a_guest_says_as_a_router_is_not_heard() {
    const TEST: &str = "what_a_guest_says_as_a_router_is_not_heard";
    in_a_world(TEST, async |world| {
        let Some((guest, _egress)) = guest(TEST, &world, NetworkPolicy::default()) else { return };
        let before = (of_slot(&guest, "if_inet6"), of_slot(&guest, "ipv6_route"));
        assert_eq!(before.0.lines().count(), 2, "the loopback's, and the tap's own: {}", before.0);
        let of_link: Ipv6Addr = "fe80::57:52ff:fe45:4e15".parse().unwrap();
        for to in ["ff02::1".parse().unwrap(), HOST_ADDRESS_V6] {
            // A router for half an hour, with a prefix to make addresses of (RFC 4861).
            let body = [0x40, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
            let prefix = [&[3, 4, 64, 0xc0, 0, 0, 7, 8, 0, 0, 7, 8, 0, 0, 0, 0, 0x2a, 7][..], &[0; 14]].concat();
            let unknown = Icmpv6Type::Unknown { type_u8: 134, code_u8: 0, bytes5to8: [body[0], 0, 7, 8] };
            let mut packet = Vec::new();
            let builder = PacketBuilder::ipv6(of_link.octets(), to.octets(), 255).icmpv6(unknown);
            builder.write_to_vec(&mut packet, &[&body[4..], &prefix].concat()).unwrap();
            guest.namespace.run(|| send_by_hand(&packet));
        }
        // Packets come in order: when this is answered, those have come.
        let socket = guest.echoes(&HOST_ADDRESS_V6.to_string(), 3);
        assert_eq!(ask_echo(&socket, 1, b"a").await.unwrap(), (3, 1, b"a".to_vec()));
        let after = (of_slot(&guest, "if_inet6"), of_slot(&guest, "ipv6_route"));
        let routes = |text: &str| text.lines().filter(|line| line.starts_with("2a07") || is_default(line)).count();
        assert_eq!((after.0, routes(&after.1)), (before.0, routes(&before.1)));
    });
}

/// Whether a line of `/proc/net/ipv6_route` is the route to everything, by the tap.
fn is_default(line: &str) -> bool {
    line.starts_with(&"0".repeat(32)) && line.ends_with("tap0")
}

#[test]
fn a_change_of_the_policy_closes_connections_and_a_restore_resets_them() {
    const TEST: &str = "a_change_of_the_policy_closes_connections_and_a_restore_resets_them";
    in_a_world(TEST, async |world| {
        let server = world.listen(&format!("[{GOOD}]:80"));
        let to = format!("[{GOOD}]:80");
        let Some((mut guest, egress)) = guest(TEST, &world, NetworkPolicy::default()) else { return };
        let (mut gone, accepted) = {
            let (guest_side, accepted) = tokio::join!(guest.connect(&to), server.accept());
            (guest_side.unwrap(), accepted.unwrap().0)
        };
        egress.set_policy(NetworkPolicy::default().deny(["2606:2800::/32"]).unwrap());
        assert_eq!(gone.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        drop(accepted);
        egress.set_policy(NetworkPolicy::default());
        let (guest_side, accepted) = tokio::join!(guest.connect(&to), server.accept());
        let (mut guest_side, mut server_side) = (guest_side.unwrap(), accepted.unwrap().0);
        server_side.write_all(b"some").await.unwrap();
        guest_side.read_exact(&mut [0; 4]).await.unwrap();
        let connections = egress.connections();
        assert_eq!(connections.len(), 1);
        let written = serde_json::to_string(&connections).unwrap();
        assert!(written.contains(&to), "{written}");
        assert_eq!(serde_json::from_str::<Vec<OpenConnection>>(&written).unwrap(), connections);
        guest.unplug();
        drop(egress);
        let egress = world.plug_anew(&mut guest);
        egress.reset(&connections);
        let ended = timeout(PATIENCE, guest_side.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn what_was_written_down_before_there_was_ipv6_is_read() {
    let written = r#"[{"guest_port":40000,"to":"93.184.216.34:443"}]"#;
    let connections: Vec<OpenConnection> = serde_json::from_str(written).unwrap();
    assert_eq!((connections[0].guest_port, connections[0].to.to_string()), (40_000, "93.184.216.34:443".to_owned()));
    assert_eq!(serde_json::to_string(&connections).unwrap(), written);
}

/// Asks up to three times, since a datagram may be lost.
async fn ask(socket: &UdpSocket, what: &[u8]) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 65_600];
    for _ in 0..3 {
        socket.send(what).await?;
        if let Ok(len) = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await {
            buffer.truncate(len?);
            return Ok(buffer);
        }
    }
    Err(ErrorKind::TimedOut.into())
}

#[test]
fn datagrams_of_all_lengths_go_there_and_back() {
    const TEST: &str = "datagrams_of_all_lengths_go_there_and_back";
    in_a_world(TEST, async |world| {
        let server = world.receive(&format!("[{GOOD}]:443"));
        tokio::spawn(async move {
            let mut buffer = [0; 65_600];
            while let Ok((len, from)) = server.recv_from(&mut buffer).await {
                server.send_to(&buffer[..len], from).await.ok();
            }
        });
        let Some((guest, egress)) = guest(TEST, &world, NetworkPolicy::default()) else { return };
        let socket = guest.datagrams(&format!("[{GOOD}]:443"));
        for len in [1, 1200, 1452, 1453, 4000, 9000] {
            let what: Vec<u8> = (0..len).map(|at: u32| at.to_le_bytes()[0]).collect();
            assert!(ask(&socket, &what).await.unwrap() == what, "{len}");
        }
        assert_eq!(egress.counters().flows, 1);
        let closed = ask(&guest.datagrams(&format!("[{GOOD}]:9")), b"a").await.unwrap_err();
        assert_eq!(closed.kind(), ErrorKind::ConnectionRefused, "{closed}");
        let refused = ask(&guest.datagrams(&format!("[{PRIVATE}]:500")), b"a").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
        assert_eq!(world.refusals().pop().unwrap().refusal, Refusal::Private);
    });
}

/// Asks up to three times; the answer's identifier, sequence number and payload.
async fn ask_echo(socket: &UdpSocket, sequence: u16, payload: &[u8]) -> io::Result<(u16, u16, Vec<u8>)> {
    let [low, high] = sequence.to_le_bytes();
    let answer = ask(socket, &[&[128, 0, 0, 0, 0, 0, high, low], payload].concat()).await?;
    let number = |at: usize| u16::from(answer[at]) << 8 | u16::from(answer[at + 1]);
    assert_eq!(answer[0], 129, "a reply");
    Ok((number(4), number(6), answer[8..].to_vec()))
}

#[test]
fn echo_requests_are_answered_refused_or_go_nowhere() {
    const TEST: &str = "echo_requests_are_answered_refused_or_go_nowhere";
    in_a_world(TEST, async |world| {
        // Unprivileged sockets for them, and raw ones.
        for groups in ["0 2147483647", "1 0"] {
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", groups).unwrap();
            let Some((guest, egress)) = guest(TEST, &world, NetworkPolicy::default()) else { return };
            let socket = guest.echoes(GOOD, 4711);
            for (sequence, len) in [(1, 0), (2, 56), (3, 1451), (65_535, 1452)] {
                let payload: Vec<u8> = (0..len).map(|at: u32| at.to_le_bytes()[0]).collect();
                let answer = ask_echo(&socket, sequence, &payload).await.unwrap();
                assert_eq!(answer, (4711, sequence, payload), "{len} bytes, {groups}");
            }
            assert!(egress.counters().echoes >= 4);
            let error = ask_echo(&guest.echoes("2606:dead::1", 5), 1, b"a").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{groups}: {error}");
            for (address, why) in [(PRIVATE, Refusal::Private), ("64:ff9b::127.0.0.1", Refusal::Local)] {
                let error = ask_echo(&guest.echoes(address, 5), 1, b"a").await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{address}: {error}");
                let refused = world.refusals().pop().unwrap();
                assert_eq!((refused.protocol, &refused.refusal), (Protocol::Icmp, &why), "{address}");
            }
        }
    });
}

fn both() -> Vec<IpAddr> {
    vec!["93.184.216.34".parse().unwrap(), GOOD.parse().unwrap()]
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut question = Message::new(77, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    question.to_vec().unwrap()
}

/// Asks a server that is not there, by IPv6.
async fn look_up(guest: &Guest, name: &str, kind: RecordType) -> (ResponseCode, Vec<IpAddr>) {
    let answer = ask(&guest.datagrams("[2001:4860:4860::8888]:53"), &question(name, kind)).await.unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    let addresses = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    });
    (answer.metadata.response_code, addresses.collect())
}

#[test]
fn names_have_ipv6_addresses_that_are_public_and_any_server_is_asked_by_ipv6() {
    const TEST: &str = "names_have_ipv6_addresses_that_are_public_and_any_server_is_asked_by_ipv6";
    in_a_world(TEST, async |world| {
        let names = world.dns(&[]);
        let insert = |name: &str, addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            names.lock().unwrap().insert(name.to_owned(), addresses);
        };
        insert("both.example", &["93.184.216.34", GOOD]);
        insert("mixed.example", &[GOOD, PRIVATE, "::1", "fe80::1", "::ffff:10.0.0.1", "64:ff9b::10.9.0.7"]);
        insert("inside.example", &[PRIVATE]);
        let Some((guest, egress)) = guest(TEST, &world, NetworkPolicy::default()) else { return };
        let good: IpAddr = GOOD.parse().unwrap();
        assert_eq!(look_up(&guest, "both.example.", RecordType::AAAA).await, (ResponseCode::NoError, vec![good]));
        let (_, v4) = look_up(&guest, "both.example.", RecordType::A).await;
        assert_eq!(v4, [IpAddr::from([93, 184, 216, 34])]);
        assert_eq!(look_up(&guest, "mixed.example.", RecordType::AAAA).await, (ResponseCode::NoError, vec![good]));
        assert_eq!(look_up(&guest, "inside.example.", RecordType::AAAA).await, (ResponseCode::Refused, vec![]));
        assert_eq!(world.refusals().pop().unwrap().refusal, Refusal::Private);
        assert!(egress.counters().questions >= 4);
        // And over TCP.
        let mut stream = guest.connect("[2620:fe::fe]:53").await.unwrap();
        let bytes = question("both.example.", RecordType::AAAA);
        stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    });
}

/// What a server says to a connection that begins with `head`; an error where it was not reached.
async fn said(guest: &Guest, to: &str, head: &[u8]) -> io::Result<String> {
    let mut stream = guest.connect(to).await?;
    stream.write_all(head).await?;
    all(&mut stream).await
}

#[test]
fn a_name_that_is_allowed_is_dialled_by_whichever_version_works() {
    const TEST: &str = "a_name_that_is_allowed_is_dialled_by_whichever_version_works";
    in_a_world(TEST, async |world| {
        for at in ["93.184.216.34:443", "93.184.216.34:444", &format!("[{GOOD}]:443"), &format!("[{OTHER}]:445")] {
            world.answer(at);
        }
        let names = world.dns(&[]);
        names.lock().unwrap().insert("both.example".to_owned(), both());
        names.lock().unwrap().insert("six.example".to_owned(), vec![OTHER.parse().unwrap()]);
        names.lock().unwrap().insert("inside.example".to_owned(), vec![PRIVATE.parse().unwrap()]);
        let policy = NetworkPolicy::closed().allow(["both.example", "six.example", "inside.example"]).unwrap();
        let Some((guest, _egress)) = guest(TEST, &world, policy) else { return };
        let (both, six) = (client_hello(Some("both.example")), client_hello(Some("six.example")));
        // Whatever the guest believes the address to be, IPv6 is tried first for one of IPv6.
        for to in [GOOD, OTHER, PRIVATE, "2001:db8::1"] {
            assert_eq!(said(&guest, &format!("[{to}]:443"), &both).await.unwrap(), format!("[{GOOD}]:443"), "{to}");
        }
        assert_eq!(said(&guest, "5.5.5.5:443", &both).await.unwrap(), "93.184.216.34:443");
        // Nobody listens there by IPv6.
        assert_eq!(said(&guest, &format!("[{GOOD}]:444"), &both).await.unwrap(), "93.184.216.34:444");
        // A name that has no IPv4 address.
        assert_eq!(said(&guest, "5.5.5.5:445", &six).await.unwrap(), format!("[{OTHER}]:445"));
        assert!(said(&guest, &format!("[{GOOD}]:443"), &client_hello(Some("inside.example"))).await.is_err());
        assert!(said(&guest, &format!("[{GOOD}]:443"), &client_hello(Some("evil.example"))).await.is_err());
        // What tells no name is reached where DNS has told its address for one.
        assert!(said(&guest, &format!("[{OTHER}]:445"), b"SSH-2.0-x\r\n").await.is_err());
        assert_eq!(look_up(&guest, "six.example.", RecordType::AAAA).await.1.len(), 1);
        assert_eq!(said(&guest, &format!("[{OTHER}]:445"), b"SSH-2.0-x\r\n").await.unwrap(), format!("[{OTHER}]:445"));
    });
}
