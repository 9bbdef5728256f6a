//! The DNS servers that a policy names.
#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use wrenn_net::{Destination, NetworkPolicy, PolicyError, Refusal};

use world::client_hello::client_hello;
use world::guest::Guest;
use world::servers::all;
use world::{HOST, in_a_world};

const GOOD: [u8; 4] = [93, 184, 216, 34];
const OTHER: [u8; 4] = [93, 184, 216, 35];
const INSIDE: [u8; 4] = [10, 9, 0, 7];

fn asking(servers: &[[u8; 4]]) -> NetworkPolicy {
    NetworkPolicy::default().with_dns_servers(servers.iter().map(|&server| server.into()))
}

fn question(name: &str) -> Vec<u8> {
    let mut question = Message::new(77, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    question.to_vec().unwrap()
}

fn read(answer: &[u8]) -> (ResponseCode, Vec<[u8; 4]>) {
    let answer = Message::from_vec(answer).unwrap();
    let addresses = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(address.0.octets()),
        _ => None,
    });
    (answer.metadata.response_code, addresses.collect())
}

/// Asks a server of the guest's choice, over UDP.
async fn look_up(guest: &Guest, server: &str, name: &str) -> (ResponseCode, Vec<[u8; 4]>) {
    let socket = guest.datagrams(server);
    socket.send(&question(name)).await.unwrap();
    let mut answer = [0; 1500];
    let len = timeout(Duration::from_secs(15), socket.recv(&mut answer)).await.unwrap().unwrap();
    read(&answer[..len])
}

/// The same, over TCP.
async fn look_up_by_tcp(guest: &Guest, server: &str, name: &str) -> (ResponseCode, Vec<[u8; 4]>) {
    let question = question(name);
    let mut stream = guest.connect(server).await.unwrap();
    stream.write_u16(u16::try_from(question.len()).unwrap()).await.unwrap();
    stream.write_all(&question).await.unwrap();
    let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut answer).await.unwrap();
    read(&answer)
}

/// Where a connection that tells this name leads.
async fn led_to(guest: &Guest, name: &str) -> String {
    let mut stream = guest.connect("5.5.5.5:443").await.unwrap();
    stream.write_all(&client_hello(Some(name))).await.unwrap();
    all(&mut stream).await.unwrap()
}

#[test]
fn names_come_from_the_servers_of_the_policy_whichever_the_guest_asks() {
    in_a_world("names_come_from_the_servers_of_the_policy_whichever_the_guest_asks", async |world| {
        world.dns(&[("both.example", &[OTHER]), ("host.example", &[OTHER])]);
        world.dns_at("93.184.216.35:53", &[("both.example", &[GOOD]), ("own.example", &[GOOD])]);
        let (guest, egress) = world.guest(asking(&[OTHER]));
        for server in ["8.8.8.8:53", "93.184.216.35:53", "10.0.0.53:53"] {
            assert_eq!(look_up(&guest, server, "own.example.").await, (ResponseCode::NoError, vec![GOOD]), "{server}");
            assert_eq!(look_up(&guest, server, "host.example.").await.0, ResponseCode::NXDomain, "{server}");
            assert_eq!(look_up_by_tcp(&guest, server, "both.example.").await.1, [GOOD], "{server}");
        }
        // What one guest is told is nothing to another.
        let (other, _egress) = world.guest(NetworkPolicy::default());
        assert_eq!(look_up(&other, "8.8.8.8:53", "both.example.").await.1, [OTHER]);
        egress.set_policy(NetworkPolicy::default());
        assert_eq!(look_up(&guest, "8.8.8.8:53", "both.example.").await.1, [OTHER]);
        assert_eq!(look_up(&guest, "93.184.216.35:53", "own.example.").await.0, ResponseCode::NXDomain);
    });
}

#[test]
fn a_connection_leads_where_the_servers_of_the_policy_say_that_its_name_is() {
    in_a_world("a_connection_leads_where_the_servers_of_the_policy_say_that_its_name_is", async |world| {
        world.answer("93.184.216.34:443");
        world.answer("93.184.216.35:443");
        world.dns(&[("good.example", &[OTHER])]);
        let own = world.dns_at("93.184.216.35:53", &[("good.example", &[GOOD])]);
        let closed = NetworkPolicy::closed().allow(["good.example"]).unwrap();
        let (guest, egress) = world.guest(closed.clone().with_dns_servers([OTHER.into()]));
        assert_eq!(led_to(&guest, "good.example").await, "93.184.216.34:443");
        assert_eq!(look_up(&guest, "8.8.8.8:53", "else.example.").await.0, ResponseCode::Refused);
        // What they say is held to the policy as well.
        own.lock().unwrap().insert("good.example".to_owned(), vec![INSIDE.into()]);
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let mut stream = guest.connect("5.5.5.5:443").await.unwrap();
        stream.write_all(&client_hello(Some("good.example"))).await.unwrap();
        assert!(all(&mut stream).await.is_err());
        egress.set_policy(closed);
        assert_eq!(led_to(&guest, "good.example").await, "93.184.216.35:443");
    });
}

#[test]
fn without_any_server_questions_are_refused_and_names_that_connections_tell_are_reached() {
    let test = "without_any_server_questions_are_refused_and_names_that_connections_tell_are_reached";
    in_a_world(test, async |world| {
        world.answer("93.184.216.34:443");
        world.dns(&[("good.example", &[GOOD])]);
        let (guest, _egress) =
            world.guest(NetworkPolicy::closed().allow(["good.example"]).unwrap().with_dns_servers([]));
        assert_eq!(look_up(&guest, "8.8.8.8:53", "good.example.").await, (ResponseCode::Refused, vec![]));
        let refused = world.refusals().pop().unwrap();
        assert_eq!(refused.refusal, Refusal::NoDnsServer);
        assert!(matches!(refused.destination, Destination::Name { .. }), "{refused:?}");
        assert_eq!(led_to(&guest, "good.example").await, "93.184.216.34:443");
    });
}

#[test]
fn a_server_in_a_private_network_is_asked_where_that_is_allowed_and_one_of_the_host_never() {
    let test = "a_server_in_a_private_network_is_asked_where_that_is_allowed_and_one_of_the_host_never";
    in_a_world(test, async |world| {
        world.dns(&[("good.example", &[OTHER])]);
        world.dns_at("10.9.0.7:53", &[("good.example", &[GOOD])]);
        let host = UdpSocket::bind((HOST, 53)).unwrap();
        host.set_nonblocking(true).unwrap();
        let unreached = |&address: &[u8; 4]| match asking(&[address]).check() {
            Err(PolicyError::DnsServer { server, .. }) => assert_eq!(server, IpAddr::from(address)),
            other => panic!("{address:?}: {other:?}"),
        };
        [INSIDE, [127, 0, 0, 1], [169, 254, 169, 254], HOST.octets()].iter().for_each(unreached);
        // A policy that nobody has checked is held to that, too.
        let (guest, egress) = world.guest(asking(&[INSIDE]));
        assert_eq!(look_up(&guest, "8.8.8.8:53", "good.example.").await.0, ResponseCode::ServFail);
        let allowed = asking(&[INSIDE]).allow(["10.9.0.7:53"]).unwrap();
        allowed.check().unwrap();
        egress.set_policy(allowed);
        assert_eq!(look_up(&guest, "8.8.8.8:53", "good.example.").await.1, [GOOD]);
        // Another port of it is another matter.
        asking(&[INSIDE]).allow(["10.9.0.7:443"]).unwrap().check().unwrap_err();
        egress.set_policy(asking(&[HOST.octets()]).allow(["192.0.2.1:53"]).unwrap());
        assert_eq!(look_up(&guest, "8.8.8.8:53", "good.example.").await.0, ResponseCode::ServFail);
        assert!(host.recv(&mut [0; 512]).is_err(), "the host was not asked");
    });
}
