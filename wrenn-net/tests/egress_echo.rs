//! A guest's echo requests: what `ping` in it finds.
#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::time::Duration;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::RouteType;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use wrenn_net::{Destination, Limits, NetworkPolicy, Protocol, Refusal};

use world::guest::ask_as_many;
use world::{Namespace, World, configure, in_a_world};

const PUBLIC: &str = "93.184.216.34";

fn request(sequence: u16, payload: &[u8]) -> Vec<u8> {
    let [low, high] = sequence.to_le_bytes();
    [&[8, 0, 0, 0, 0, 0, high, low], payload].concat()
}

/// Asks once; the answer's identifier, sequence number and payload.
async fn ask_once(socket: &UdpSocket, sequence: u16, payload: &[u8]) -> io::Result<(u16, u16, Vec<u8>)> {
    socket.send(&request(sequence, payload)).await?;
    hear(socket).await
}

async fn hear(socket: &UdpSocket) -> io::Result<(u16, u16, Vec<u8>)> {
    let mut buffer = [0; 2000];
    let len = timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await??;
    let number = |at: usize| u16::from(buffer[at]) << 8 | u16::from(buffer[at + 1]);
    assert_eq!(buffer[0], 0, "a reply");
    Ok((number(4), number(6), buffer[8..len].to_vec()))
}

/// Asks up to three times, since a packet may be lost.
async fn ask(socket: &UdpSocket, sequence: u16, payload: &[u8]) -> io::Result<(u16, u16, Vec<u8>)> {
    for _ in 0..2 {
        match ask_once(socket, sequence, payload).await {
            Err(error) if error.kind() == ErrorKind::TimedOut => {}
            other => return other,
        }
    }
    ask_once(socket, sequence, payload).await
}

/// Whether this program may have unprivileged sockets for echo requests, as on most distributions.
fn set_unprivileged(may: bool) {
    let groups = if may { "0 2147483647" } else { "1 0" };
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", groups).unwrap();
}

fn silence(world: &World, is_silent: &str) {
    world.internet.run(|| std::fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", is_silent).unwrap());
}

#[test]
fn echo_requests_of_all_lengths_are_answered_with_the_guests_own_numbers() {
    in_a_world("echo_requests_of_all_lengths_are_answered_with_the_guests_own_numbers", async |world| {
        for may in [true, false] {
            set_unprivileged(may);
            let (guest, egress) = world.guest(NetworkPolicy::default());
            let socket = guest.echoes(PUBLIC, 4711);
            for (sequence, len) in [(1, 0), (2, 56), (3, 1471), (65_535, 1472)] {
                let payload: Vec<u8> = (0..len).map(|at: u32| at.to_le_bytes()[0]).collect();
                let answer = ask(&socket, sequence, &payload).await.unwrap();
                assert_eq!(answer, (4711, sequence, payload), "{len} bytes, unprivileged: {may}");
            }
            let counters = egress.counters();
            assert!(counters.echoes >= 4 && counters.bytes_in == 56 + 1471 + 1472, "{counters:?}");
            assert_eq!((counters.flows, counters.refusals), (0, 0));
        }
    });
}

#[test]
fn an_echo_request_that_nobody_answers_gets_no_answer() {
    in_a_world("an_echo_request_that_nobody_answers_gets_no_answer", async |world| {
        let (guest, _egress) = world.guest(NetworkPolicy::default());
        let socket = guest.echoes(PUBLIC, 1);
        silence(&world, "1");
        let error = ask_once(&socket, 1, b"a").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        silence(&world, "0");
        assert_eq!(ask(&socket, 2, b"b").await.unwrap(), (1, 2, b"b".to_vec()));
    });
}

#[test]
fn what_is_not_on_the_way_is_told_to_the_guests_program() {
    in_a_world("what_is_not_on_the_way_is_told_to_the_guests_program", async |world| {
        let host = Namespace::of_this_thread();
        host.run(|| {
            configure(async |netlink| {
                let prohibited = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix([5, 5, 5, 5].into(), 32);
                let prohibited = prohibited.kind(RouteType::Prohibit).build();
                netlink.route().add(prohibited).execute().await.unwrap();
            });
        });
        for may in [true, false] {
            set_unprivileged(may);
            let (guest, _egress) = world.guest(NetworkPolicy::default());
            // The internet knows no such network; and the host forbids the other.
            for (address, expected) in
                [("9.9.9.9", ErrorKind::NetworkUnreachable), ("5.5.5.5", ErrorKind::HostUnreachable)]
            {
                let socket = guest.echoes(address, 9);
                for sequence in 1..4 {
                    let error = ask(&socket, sequence, b"a").await.unwrap_err();
                    assert_eq!(error.kind(), expected, "{address}, unprivileged: {may}: {error}");
                }
            }
            assert_eq!(ask(&guest.echoes(PUBLIC, 9), 1, b"a").await.unwrap().0, 9);
        }
    });
}

#[test]
fn what_the_policy_refuses_is_told_to_the_guest_and_to_the_program() {
    in_a_world("what_the_policy_refuses_is_told_to_the_guest_and_to_the_program", async |world| {
        let policy =
            NetworkPolicy::default().deny([PUBLIC]).unwrap().allow(["10.9.0.7:80", "tcp://10.9.0.0/16"]).unwrap();
        let (guest, egress) = world.guest(policy);
        for (address, expected) in [
            (PUBLIC, Refusal::Denied(PUBLIC.parse().unwrap())),
            ("10.9.0.7", Refusal::Private),
            ("169.254.169.254", Refusal::Local),
            ("192.0.2.1", Refusal::Local),
        ] {
            let error = ask(&guest.echoes(address, 5), 1, b"a").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{address}: {error}");
            let refused = world.refusals().pop().unwrap();
            assert_eq!((refused.protocol, &refused.refusal), (Protocol::Icmp, &expected), "{address}");
            let Destination::Echo { address: told, .. } = refused.destination else { panic!("{refused:?}") };
            assert_eq!(told.to_string(), address);
        }
        assert_eq!((egress.counters().refusals, egress.counters().echoes), (4, 0));
        egress.set_policy(NetworkPolicy::default().allow(["10.9.0.0/16"]).unwrap());
        assert_eq!(ask(&guest.echoes("10.9.0.7", 5), 1, b"a").await.unwrap().1, 1);
    });
}

#[test]
fn a_change_of_the_policy_ends_what_was_let_through() {
    in_a_world("a_change_of_the_policy_ends_what_was_let_through", async |world| {
        let (guest, egress) = world.guest(NetworkPolicy::default());
        let socket = guest.echoes(PUBLIC, 6);
        assert_eq!(ask(&socket, 1, b"a").await.unwrap().1, 1);
        egress.set_policy(NetworkPolicy::closed());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(ask(&socket, 2, b"a").await.unwrap_err().kind(), ErrorKind::HostUnreachable);
    });
}

#[test]
fn an_allowed_name_is_reached_where_dns_has_told_it() {
    in_a_world("an_allowed_name_is_reached_where_dns_has_told_it", async |world| {
        world.dns(&[("good.example", &[[93, 184, 216, 35]])]);
        let (guest, _egress) = world.guest(NetworkPolicy::closed().allow(["good.example"]).unwrap());
        let socket = guest.echoes("93.184.216.35", 7);
        assert_eq!(ask(&socket, 1, b"a").await.unwrap_err().kind(), ErrorKind::HostUnreachable);
        assert_eq!(world.refusals().pop().unwrap().refusal, Refusal::Name);
        let dns = guest.datagrams("8.8.8.8:53");
        // A question for the A of `good.example`.
        let question = b"\0\x4d\x01\0\0\x01\0\0\0\0\0\0\x04good\x07example\0\0\x01\0\x01";
        dns.send(question).await.unwrap();
        timeout(Duration::from_secs(5), dns.recv(&mut [0; 512])).await.unwrap().unwrap();
        assert_eq!(ask(&socket, 2, b"a").await.unwrap(), (7, 2, b"a".to_vec()));
    });
}

#[test]
fn each_program_of_each_guest_gets_its_own_answers() {
    in_a_world("each_program_of_each_guest_gets_its_own_answers", async |world| {
        for may in [true, false] {
            set_unprivileged(may);
            let guests = [world.guest(NetworkPolicy::default()), world.guest(NetworkPolicy::default())];
            let programs: Vec<_> = guests
                .iter()
                .flat_map(|(guest, _)| [100, 200].map(|identifier| (identifier, guest.echoes(PUBLIC, identifier))))
                .collect();
            for sequence in 1..20 {
                let own = |at: usize| vec![u8::try_from(at).unwrap(); 8];
                for (at, (_, socket)) in programs.iter().enumerate() {
                    socket.send(&request(sequence, &own(at))).await.unwrap();
                }
                for (at, (identifier, socket)) in programs.iter().enumerate() {
                    let answer = hear(socket).await.unwrap();
                    assert_eq!(answer, (*identifier, sequence, own(at)), "program {at}, unprivileged: {may}");
                }
            }
            // And nothing besides.
            tokio::time::sleep(Duration::from_millis(100)).await;
            for (_, socket) in &programs {
                assert_eq!(socket.try_recv(&mut [0; 100]).unwrap_err().kind(), ErrorKind::WouldBlock);
            }
        }
    });
}

#[test]
fn a_thousand_echo_requests_of_one_program_share_a_flow() {
    in_a_world("a_thousand_echo_requests_of_one_program_share_a_flow", async |world| {
        let limits = Limits { begun_per_second: 10, ..Limits::default() };
        let (guest, egress) = world.guest_with(NetworkPolicy::default(), limits);
        let socket = guest.echoes(PUBLIC, 8);
        for sequence in 0..1000 {
            assert_eq!(ask(&socket, sequence, b"again").await.unwrap().1, sequence);
        }
        assert!(egress.counters().echoes >= 1000);
    });
}

#[test]
fn a_thousand_programs_that_ask_at_once_have_few_descriptors() {
    in_a_world("a_thousand_programs_that_ask_at_once_have_few_descriptors", async |world| {
        let limits = Limits { echoes: 8, ..Limits::default() };
        let (guest, egress) = world.guest_with(NetworkPolicy::default(), limits);
        let socket = guest.echoes(PUBLIC, 10_000);
        ask(&socket, 1, b"a").await.unwrap();
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = descriptors();
        let namespace = guest.namespace.clone();
        tokio::task::spawn_blocking(move || namespace.run(|| ask_as_many([93, 184, 216, 34], 1..1001))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (after, echoes) = (descriptors(), egress.counters().echoes);
        println!("{echoes} of 1001 sent on; {before} descriptors before, {after} after");
        // Other tests of this binary run beside it.
        assert!((8..=1001).contains(&echoes) && after < before + 300, "{echoes}: {before}, {after}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(ask(&socket, 2, b"b").await.unwrap(), (10_000, 2, b"b".to_vec()));
    });
}
