//! What is reached by its name alone.
#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use tokio::io::AsyncWriteExt;
use wrenn_net::NetworkPolicy;

use world::client_hello::client_hello;
use world::guest::Guest;
use world::servers::all;
use world::{World, in_a_world};

const GOOD: &str = "93.184.216.34";
const OTHER: &str = "93.184.216.35";

/// A guest that may reach what is at these names and nothing else.
fn closed(world: &World, names: &[&str]) -> (Guest, wrenn_net::Egress) {
    world.guest(NetworkPolicy::closed().allow(names).unwrap())
}

/// What a server says to a connection that begins with `head`; an error where it was not reached.
async fn said(guest: &Guest, to: &str, head: &[u8]) -> std::io::Result<String> {
    let mut stream = guest.connect(to).await?;
    stream.write_all(head).await?;
    all(&mut stream).await
}

fn http(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

#[test]
fn a_connection_is_made_to_the_name_that_it_tells_wherever_the_guest_sends_it() {
    in_a_world("a_connection_is_made_to_the_name_that_it_tells_wherever_the_guest_sends_it", async |world| {
        for address in [GOOD, OTHER, "10.9.0.7", "8.8.8.8"] {
            world.answer(&format!("{address}:80"));
            world.answer(&format!("{address}:443"));
        }
        world.dns(&[("good.example", &[[93, 184, 216, 34]])]);
        let (guest, _egress) = closed(&world, &["good.example"]);
        // Whatever the guest believes the address to be, even one inside a private network.
        for address in [GOOD, OTHER, "8.8.8.8", "10.9.0.7", "5.5.5.5"] {
            let http = said(&guest, &format!("{address}:80"), &http("good.example")).await.unwrap();
            assert_eq!(http, format!("{GOOD}:80"), "{address}");
            let tls = said(&guest, &format!("{address}:443"), &client_hello(Some("good.example"))).await.unwrap();
            assert_eq!(tls, format!("{GOOD}:443"), "{address}");
        }
    });
}

#[test]
fn what_tells_another_name_or_none_is_refused() {
    in_a_world("what_tells_another_name_or_none_is_refused", async |world| {
        world.answer(&format!("{GOOD}:443"));
        world.dns(&[("good.example", &[[93, 184, 216, 34]]), ("evil.example", &[[93, 184, 216, 34]])]);
        let (guest, egress) = closed(&world, &["good.example:443", "*.good.example:443"]);
        let to = format!("{GOOD}:443");
        for head in [
            client_hello(Some("evil.example")),
            client_hello(Some("notgood.example")),
            client_hello(None),
            http("evil.example"),
            http(GOOD),
            b"GET / HTTP/1.0\r\n\r\n".to_vec(),
            b"\x00\x01\x02\x03".to_vec(),
            b"SSH-2.0-x\r\n".to_vec(),
        ] {
            assert!(said(&guest, &to, &head).await.is_err(), "{:?}", String::from_utf8_lossy(&head));
            assert_eq!(world.refusals().len(), 1);
        }
        let counters = egress.counters();
        assert_eq!((counters.connections, counters.refusals), (0, 8));
        assert!(said(&guest, &to, &client_hello(Some("good.example"))).await.is_ok());
        // Another port is refused before it tells anything.
        assert!(guest.connect(&format!("{GOOD}:80")).await.is_err());
    });
}

#[test]
fn a_server_name_in_many_small_pieces_is_read() {
    in_a_world("a_server_name_in_many_small_pieces_is_read", async |world| {
        world.answer(&format!("{GOOD}:443"));
        world.dns(&[("good.example", &[[93, 184, 216, 34]])]);
        let (guest, _egress) = closed(&world, &["good.example"]);
        let mut stream = guest.connect(&format!("{GOOD}:443")).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in client_hello(Some("good.example")) {
            stream.write_u8(byte).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(all(&mut stream).await.unwrap(), format!("{GOOD}:443"));
    });
}

#[test]
fn an_allowed_name_that_leads_into_a_private_network_is_refused_also_when_it_did_not_before() {
    let test = "an_allowed_name_that_leads_into_a_private_network_is_refused_also_when_it_did_not_before";
    in_a_world(test, async |world| {
        for address in [GOOD, "10.9.0.7", "169.254.169.254"] {
            world.answer(&format!("{address}:80"));
        }
        let names = world.dns(&[("turns.example", &[[93, 184, 216, 34]])]);
        let (guest, egress) = closed(&world, &["turns.example"]);
        let to = format!("{GOOD}:80");
        assert_eq!(said(&guest, &to, &http("turns.example")).await.unwrap(), format!("{GOOD}:80"));
        for private in [[10, 9, 0, 7], [169, 254, 169, 254], [192, 0, 2, 1], [127, 0, 0, 1]] {
            names.lock().unwrap().insert("turns.example".to_owned(), vec![private.into()]);
            // Its answers are good for a second.
            tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
            assert!(said(&guest, &to, &http("turns.example")).await.is_err(), "{private:?}");
        }
        // A private network that is named as well is meant.
        egress.set_policy(NetworkPolicy::closed().allow(["turns.example", "10.9.0.7:80"]).unwrap());
        names.lock().unwrap().insert("turns.example".to_owned(), vec![[10, 9, 0, 7].into()]);
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
        assert_eq!(said(&guest, &to, &http("turns.example")).await.unwrap(), "10.9.0.7:80");
    });
}

#[test]
fn what_has_no_name_in_it_is_reached_where_the_guest_was_told_its_address() {
    in_a_world("what_has_no_name_in_it_is_reached_where_the_guest_was_told_its_address", async |world| {
        world.greet(&format!("{GOOD}:22"));
        world.greet(&format!("{OTHER}:22"));
        world.dns(&[("git.example", &[[93, 184, 216, 34]])]);
        let (guest, _egress) = closed(&world, &["git.example:22"]);
        let to = format!("{GOOD}:22");
        assert!(said(&guest, &to, b"").await.is_err(), "nobody has asked for the name");
        let socket = guest.datagrams("8.8.8.8:53");
        let question = hickory_question("git.example.");
        socket.send(&question).await.unwrap();
        socket.recv(&mut [0; 512]).await.unwrap();
        assert_eq!(said(&guest, &to, b"").await.unwrap(), format!("{GOOD}:22"));
        assert!(said(&guest, &format!("{OTHER}:22"), b"").await.is_err());
    });
}

#[test]
fn an_address_that_was_told_by_an_earlier_policy_is_not_reached_by_a_later_one() {
    in_a_world("an_address_that_was_told_by_an_earlier_policy_is_not_reached_by_a_later_one", async |world| {
        world.greet("10.9.0.7:22");
        world.dns(&[("inside.example", &[[10, 9, 0, 7]])]);
        let (guest, egress) = closed(&world, &["inside.example", "10.9.0.7:22"]);
        let socket = guest.datagrams("8.8.8.8:53");
        socket.send(&hickory_question("inside.example.")).await.unwrap();
        socket.recv(&mut [0; 512]).await.unwrap();
        assert_eq!(said(&guest, "10.9.0.7:22", b"").await.unwrap(), "10.9.0.7:22");
        egress.set_policy(NetworkPolicy::closed().allow(["inside.example"]).unwrap());
        assert!(said(&guest, "10.9.0.7:22", b"").await.is_err());
    });
}

fn hickory_question(name: &str) -> Vec<u8> {
    use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query};
    use hickory_resolver::proto::rr::{Name, RecordType};
    let mut question = Message::new(1, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    question.to_vec().unwrap()
}

#[test]
fn a_change_of_names_closes_what_was_let_through_by_one() {
    in_a_world("a_change_of_names_closes_what_was_let_through_by_one", async |world| {
        world.echo(&format!("{GOOD}:443"));
        world.dns(&[("good.example", &[[93, 184, 216, 34]])]);
        let (guest, egress) = closed(&world, &["good.example"]);
        let hello = client_hello(Some("good.example"));
        let mut stream = guest.connect(&format!("{GOOD}:443")).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        let mut back = vec![0; hello.len()];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut back).await.unwrap();
        assert_eq!(back, hello);
        egress.set_policy(NetworkPolicy::closed().allow(["good.example", "else.example"]).unwrap());
        stream.write_all(b"a").await.unwrap();
        assert_eq!(tokio::io::AsyncReadExt::read_u8(&mut stream).await.unwrap(), b'a');
        egress.set_policy(NetworkPolicy::closed().allow(["else.example"]).unwrap());
        assert!(all(&mut stream).await.is_err());
    });
}
