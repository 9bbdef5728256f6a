//! A guest's TCP: what is reached, what is not, and how each end is told to the guest's program.

mod world;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wrenn_net::{Budget, Limits, NetworkPolicy, Refusal};

use world::servers::{all, sent_and_returned};
use world::{HOST, in_a_world};

const QUICK: Duration = Duration::from_secs(2);

#[test]
fn a_server_on_the_internet_is_reached_and_each_end_is_passed_on() {
    in_a_world("a_server_on_the_internet_is_reached_and_each_end_is_passed_on", async |world| {
        world.echo("93.184.216.34:8443");
        let (guest, egress) = world.guest(NetworkPolicy::default());
        let mut stream = guest.connect("93.184.216.34:8443").await.unwrap();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7).to_le_bytes()[0]).collect();
        assert!(sent_and_returned(&mut stream, &sent).await == sent);
        let counters = egress.counters();
        assert_eq!((counters.bytes_out, counters.bytes_in), (3_000_000, 3_000_000));
        assert_eq!((counters.connections, counters.refusals), (1, 0));
    });
}

#[test]
fn a_connect_means_what_it_says() {
    in_a_world("a_connect_means_what_it_says", async |world| {
        let (guest, egress) = world.guest(NetworkPolicy::default());
        for (to, kind) in
            [("93.184.216.34:9", ErrorKind::ConnectionRefused), ("93.99.99.99:80", ErrorKind::NetworkUnreachable)]
        {
            let began = Instant::now();
            let error = guest.connect(to).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{to}: {error}");
            assert!(began.elapsed() < QUICK * 3, "{to}: {:?}", began.elapsed());
        }
        assert_eq!(egress.counters().open_connections, 0);
    });
}

#[test]
fn a_server_that_begins_is_heard() {
    in_a_world("a_server_that_begins_is_heard", async |world| {
        world.greet("93.184.216.34:22");
        let (guest, _egress) = world.guest(NetworkPolicy::default());
        let mut stream = guest.connect("93.184.216.34:22").await.unwrap();
        assert_eq!(all(&mut stream).await.unwrap(), "93.184.216.34:22");
    });
}

#[test]
fn the_host_its_link_and_private_networks_are_refused_at_once_and_told_of() {
    in_a_world("the_host_its_link_and_private_networks_are_refused_at_once_and_told_of", async |world| {
        world.echo("10.9.0.7:80");
        world.echo("169.254.169.254:80");
        let own = tokio::net::TcpListener::bind((HOST, 80)).await.unwrap();
        let (guest, egress) = world.guest(NetworkPolicy::default());
        let host = format!("{HOST}:80");
        for (to, why) in [
            ("10.9.0.7:80", Refusal::Private),
            ("169.254.169.254:80", Refusal::Local),
            (&host, Refusal::Local),
            ("192.168.1.1:443", Refusal::Private),
            ("240.0.0.1:80", Refusal::Local),
        ] {
            let began = Instant::now();
            let error = guest.connect(to).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
            assert!(began.elapsed() < QUICK, "{to}: {:?}", began.elapsed());
            let told = world.refusals();
            assert!(told.last().is_some_and(|refused| refused.refusal == why), "{to}: {told:?}");
        }
        assert_eq!(egress.counters().refusals, 5);
        drop(own);
        // Where the policy names it, a private network is reached.
        egress.set_policy(NetworkPolicy::default().allow(["10.9.0.0/16:80"]).unwrap());
        guest.connect("10.9.0.7:80").await.unwrap();
    });
}

#[test]
fn the_slots_own_end_has_nothing_to_reach() {
    in_a_world("the_slots_own_end_has_nothing_to_reach", async |world| {
        let (guest, _egress) = world.guest(NetworkPolicy::default());
        for port in [80, 53, 22, 65_535] {
            let error = guest.connect(&format!("169.254.0.22:{port}")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{port}: {error}");
        }
    });
}

#[test]
fn a_change_of_the_policy_closes_what_it_no_longer_lets_through() {
    in_a_world("a_change_of_the_policy_closes_what_it_no_longer_lets_through", async |world| {
        world.echo("93.184.216.34:80");
        world.echo("93.184.216.35:80");
        let (guest, egress) = world.guest(NetworkPolicy::default());
        let mut gone = guest.connect("93.184.216.34:80").await.unwrap();
        let mut stays = guest.connect("93.184.216.35:80").await.unwrap();
        for stream in [&mut gone, &mut stays] {
            stream.write_all(b"a").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'a');
        }
        let began = Instant::now();
        egress.set_policy(NetworkPolicy::default().deny(["93.184.216.34"]).unwrap());
        assert_eq!(gone.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        println!("measured: a change of the policy closes a connection after {:?}", began.elapsed());
        // Less than a millisecond where nobody else has the processors.
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        stays.write_all(b"b").await.unwrap();
        assert_eq!(stays.read_u8().await.unwrap(), b'b');
        assert_eq!(guest.connect("93.184.216.34:80").await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn when_the_way_out_is_dropped_both_ends_see_their_connections_end() {
    in_a_world("when_the_way_out_is_dropped_both_ends_see_their_connections_end", async |world| {
        let server = world.listen("93.184.216.34:80");
        let (guest, egress) = world.guest(NetworkPolicy::default());
        let (guest_side, accepted) = tokio::join!(guest.connect("93.184.216.34:80"), server.accept());
        let (mut guest_side, mut server_side) = (guest_side.unwrap(), accepted.unwrap().0);
        guest_side.write_all(b"a").await.unwrap();
        assert_eq!(server_side.read_u8().await.unwrap(), b'a');
        drop(egress);
        assert_eq!(server_side.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(guest_side.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

/// As after a restore: the guest is at another point than whoever was connected to it, and has another slot.
#[test]
fn what_a_guest_has_kept_from_another_slot_is_reset_without_a_word_of_its_own() {
    let test = "what_a_guest_has_kept_from_another_slot_is_reset_without_a_word_of_its_own";
    in_a_world(test, async |world| {
        let server = world.listen("93.184.216.34:80");
        let (mut guest, egress) = world.guest(NetworkPolicy::default());
        let (guest_side, accepted) = tokio::join!(guest.connect("93.184.216.34:80"), server.accept());
        let (mut guest_side, mut server_side) = (guest_side.unwrap(), accepted.unwrap().0);
        server_side.write_all(b"some").await.unwrap();
        guest_side.read_exact(&mut [0; 4]).await.unwrap();
        let connections = egress.connections();
        assert_eq!(connections.len(), 1);
        // What the guest acknowledges late would be answered with a reset by itself.
        tokio::time::sleep(Duration::from_millis(500)).await;
        guest.unplug();
        drop(egress);
        let egress = world.plug_anew(&mut guest);
        let waits = tokio::time::timeout(Duration::from_millis(300), guest_side.read_u8()).await;
        assert!(waits.is_err(), "nobody has told it yet: {waits:?}");
        egress.reset(&connections);
        let ended = tokio::time::timeout(QUICK, guest_side.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_guest_has_as_many_connections_as_it_may_have_and_others_are_refused() {
    in_a_world("a_guest_has_as_many_connections_as_it_may_have_and_others_are_refused", async |world| {
        world.echo("93.184.216.34:80");
        let limits = Limits { connections: 8, ..Limits::default() };
        let (guest, egress) = world.guest_with(NetworkPolicy::default(), limits);
        let mut open = Vec::new();
        for _ in 0..8 {
            open.push(guest.connect("93.184.216.34:80").await.unwrap());
        }
        let error = guest.connect("93.184.216.34:80").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(world.refusals().pop().unwrap().refusal, Refusal::Limit);
        open.clear();
        let began = Instant::now();
        while egress.counters().open_connections > 0 {
            assert!(began.elapsed() < QUICK, "{:?}", egress.counters());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        guest.connect("93.184.216.34:80").await.unwrap();
    });
}

#[test]
fn wrenns_own_connections_to_the_guest_go_as_before() {
    in_a_world("wrenns_own_connections_to_the_guest_go_as_before", async |world| {
        let (guest, _egress) = world.guest(NetworkPolicy::closed());
        let listener = guest.namespace.run(|| std::net::TcpListener::bind("0.0.0.0:49983").unwrap());
        let mut to_guest = guest.slot.connect(49_983).await.unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut accepted, b"hello").unwrap();
        drop(accepted);
        assert_eq!(all(&mut to_guest).await.unwrap(), "hello");
    });
}

#[test]
fn guests_share_what_the_program_has_and_none_takes_all_of_it() {
    in_a_world("guests_share_what_the_program_has_and_none_takes_all_of_it", async |world| {
        world.echo("93.184.216.34:80");
        let budget = Budget::new(32);
        let guests: Vec<_> = (0..9).map(|_| world.guest_of(&budget)).collect();
        let mut open = Vec::new();
        for (guest, _) in &guests[..8] {
            for _ in 0..2 {
                open.push(guest.connect("93.184.216.34:80").await.unwrap());
            }
            let error = guest.connect("93.184.216.34:80").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "a guest's own share");
        }
        let (last, _) = &guests[8];
        let error = last.connect("93.184.216.34:80").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "what all have");
        drop(open);
        let began = Instant::now();
        while last.connect("93.184.216.34:80").await.is_err() {
            assert!(began.elapsed() < QUICK, "what was given back is not there again");
        }
    });
}
