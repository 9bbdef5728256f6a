//! A guest's UDP, and its questions to DNS.
#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::io::ErrorKind;
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;
use wrenn_net::{Destination, Limits, NetworkPolicy, Refusal};

use world::guest::Guest;
use world::{World, in_a_world};

fn echo(world: &World, at: &str) {
    let socket = world.receive(at);
    tokio::spawn(async move {
        let mut buffer = [0; 65_600];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..len], from).await.ok();
        }
    });
}

/// Asks up to three times, since a datagram may be lost.
async fn ask(socket: &UdpSocket, what: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 65_600];
    for _ in 0..3 {
        socket.send(what).await?;
        if let Ok(len) = timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await {
            buffer.truncate(len?);
            return Ok(buffer);
        }
    }
    Err(ErrorKind::TimedOut.into())
}

#[test]
fn datagrams_of_all_lengths_go_there_and_back() {
    in_a_world("datagrams_of_all_lengths_go_there_and_back", async |world| {
        echo(&world, "93.184.216.34:443");
        let (guest, egress) = world.guest(NetworkPolicy::default());
        let socket = guest.datagrams("93.184.216.34:443");
        for len in [1, 1200, 1472, 1473, 4000, 9000] {
            let what: Vec<u8> = (0..len).map(|at: u32| at.to_le_bytes()[0]).collect();
            assert!(ask(&socket, &what).await.unwrap() == what, "{len}");
        }
        assert_eq!(egress.counters().flows, 1);
    });
}

#[test]
fn what_is_refused_and_what_is_closed_is_told_to_the_guests_program() {
    in_a_world("what_is_refused_and_what_is_closed_is_told_to_the_guests_program", async |world| {
        echo(&world, "10.9.0.7:500");
        let (guest, _egress) = world.guest(NetworkPolicy::default());
        let closed = ask(&guest.datagrams("93.184.216.34:9"), b"a").await.unwrap_err();
        assert_eq!(closed.kind(), ErrorKind::ConnectionRefused, "{closed}");
        let refused = ask(&guest.datagrams("10.9.0.7:500"), b"a").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::HostUnreachable, "{refused}");
        assert_eq!(world.refusals().pop().unwrap().refusal, Refusal::Private);
    });
}

#[test]
fn the_flow_that_was_used_least_recently_makes_room() {
    in_a_world("the_flow_that_was_used_least_recently_makes_room", async |world| {
        echo(&world, "93.184.216.34:443");
        let limits = Limits { flows: 2, ..Limits::default() };
        let (guest, egress) = world.guest_with(NetworkPolicy::default(), limits);
        let sockets: Vec<_> = (0..10).map(|_| guest.datagrams("93.184.216.34:443")).collect();
        for socket in sockets.iter().chain(&sockets) {
            assert_eq!(ask(socket, b"a").await.unwrap(), b"a");
        }
        assert_eq!(egress.counters().flows, 20);
    });
}

#[test]
fn a_change_of_the_policy_ends_flows() {
    in_a_world("a_change_of_the_policy_ends_flows", async |world| {
        echo(&world, "93.184.216.34:443");
        let (guest, egress) = world.guest(NetworkPolicy::default());
        let socket = guest.datagrams("93.184.216.34:443");
        assert_eq!(ask(&socket, b"a").await.unwrap(), b"a");
        egress.set_policy(NetworkPolicy::closed());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let error = ask(&socket, b"b").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
    });
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut question = Message::new(77, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    question
}

/// Asks a server of the guest's choice, over UDP.
async fn look_up(guest: &Guest, server: &str, name: &str, kind: RecordType) -> (ResponseCode, Vec<[u8; 4]>) {
    let socket = guest.datagrams(server);
    let answer = ask(&socket, &question(name, kind).to_vec().unwrap()).await.unwrap();
    read(&answer)
}

fn read(answer: &[u8]) -> (ResponseCode, Vec<[u8; 4]>) {
    let answer = Message::from_vec(answer).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.recursion_available), (77, true));
    let addresses = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(address.0.octets()),
        _ => None,
    });
    (answer.metadata.response_code, addresses.collect())
}

#[test]
fn names_are_resolved_whichever_server_is_asked() {
    in_a_world("names_are_resolved_whichever_server_is_asked", async |world| {
        world.dns(&[("example.com", &[[93, 184, 216, 34], [93, 184, 216, 35]])]);
        let (guest, egress) = world.guest(NetworkPolicy::default());
        for server in ["8.8.8.8:53", "1.1.1.1:53", "10.0.0.53:53", "169.254.0.53:53"] {
            let (code, addresses) = look_up(&guest, server, "Example.com.", RecordType::A).await;
            assert_eq!((code, addresses.len()), (ResponseCode::NoError, 2), "{server}");
        }
        assert_eq!(
            look_up(&guest, "8.8.8.8:53", "example.com.", RecordType::AAAA).await,
            (ResponseCode::NoError, vec![]),
            "the name has no such address"
        );
        let (code, _) = look_up(&guest, "8.8.8.8:53", "not-there.example.", RecordType::A).await;
        assert_eq!(code, ResponseCode::NXDomain);
        assert_eq!(egress.counters().questions, 6);
    });
}

#[test]
fn an_answer_that_is_too_long_for_a_datagram_comes_over_tcp() {
    in_a_world("an_answer_that_is_too_long_for_a_datagram_comes_over_tcp", async |world| {
        let many: Vec<[u8; 4]> = (0..60).map(|at| [93, 184, 1, at]).collect();
        world.dns(&[("many.example", &many)]);
        let (guest, _egress) = world.guest(NetworkPolicy::default());
        let socket = guest.datagrams("8.8.8.8:53");
        let bytes = question("many.example.", RecordType::A).to_vec().unwrap();
        let short = Message::from_vec(&ask(&socket, &bytes).await.unwrap()).unwrap();
        assert!(short.metadata.truncation && short.answers.is_empty());
        let mut stream = guest.connect("1.1.1.1:53").await.unwrap();
        for _ in 0..2 {
            stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(read(&answer).1.len(), 60);
        }
    });
}

#[test]
fn a_name_that_leads_into_a_private_network_is_refused() {
    in_a_world("a_name_that_leads_into_a_private_network_is_refused", async |world| {
        let inside = [[10, 9, 0, 7]];
        let mixed = [[93, 184, 216, 34], [127, 0, 0, 1], [169, 254, 169, 254]];
        world.dns(&[("inside.example", &inside), ("mixed.example", &mixed), ("host.example", &[[192, 0, 2, 1]])]);
        let (guest, egress) = world.guest(NetworkPolicy::default());
        let ask = |name| look_up(&guest, "8.8.8.8:53", name, RecordType::A);
        for name in ["inside.example.", "host.example."] {
            assert_eq!(ask(name).await, (ResponseCode::Refused, vec![]), "{name}");
            let refused = world.refusals().pop().unwrap();
            assert!(matches!(refused.destination, Destination::Name { .. }), "{refused:?}");
        }
        assert_eq!(ask("mixed.example.").await, (ResponseCode::NoError, vec![[93, 184, 216, 34]]));
        egress.set_policy(NetworkPolicy::default().allow(["10.9.0.7"]).unwrap());
        assert_eq!(ask("inside.example.").await, (ResponseCode::NoError, inside.to_vec()));
    });
}

#[test]
fn where_all_is_denied_only_names_that_are_allowed_are_asked_for() {
    in_a_world("where_all_is_denied_only_names_that_are_allowed_are_asked_for", async |world| {
        world.dns(&[("good.example", &[[93, 184, 216, 34]]), ("secret.evil.example", &[[93, 184, 216, 35]])]);
        let (guest, _egress) = world.guest(NetworkPolicy::closed().allow(["good.example:443"]).unwrap());
        let ask = |name| look_up(&guest, "8.8.8.8:53", name, RecordType::A);
        assert_eq!(ask("good.example.").await.0, ResponseCode::NoError);
        assert_eq!(ask("secret.evil.example.").await, (ResponseCode::Refused, vec![]));
        assert_eq!(world.refusals().pop().unwrap().refusal, Refusal::Name);
    });
}

#[test]
fn rubbish_to_dns_does_no_harm() {
    in_a_world("rubbish_to_dns_does_no_harm", async |world| {
        world.dns(&[("example.com", &[[93, 184, 216, 34]])]);
        let (guest, _egress) = world.guest(NetworkPolicy::default());
        let socket = guest.datagrams("8.8.8.8:53");
        for len in 0..600_usize {
            socket.send(&vec![u8::try_from(len % 251).unwrap(); len]).await.ok();
        }
        let mut two = question("example.com.", RecordType::A);
        two.add_query(Query::query(Name::from_ascii("example.com.").unwrap(), RecordType::A));
        let answer = ask(&guest.datagrams("8.8.8.8:53"), &two.to_vec().unwrap()).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::FormErr);
        let (code, _) = look_up(&guest, "8.8.8.8:53", "example.com.", RecordType::A).await;
        assert_eq!(code, ResponseCode::NoError);
    });
}
