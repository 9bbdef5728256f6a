//! How fast a guest's data is carried. By itself, since it counts time.
#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wrenn_net::{Budget, Limits, NetworkPolicy};

use world::in_a_world;

/// Sends `bytes` to a server that sends them back, and returns how long that takes.
async fn there_and_back(stream: TcpStream, bytes: usize) -> Duration {
    let (mut read, mut write) = stream.into_split();
    let begun = Instant::now();
    let sent = tokio::spawn(async move {
        write.write_all(&vec![7; bytes]).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    read.read_to_end(&mut back).await.unwrap();
    sent.await.unwrap();
    assert!(back.len() == bytes && back.iter().all(|&byte| byte == 7));
    begun.elapsed()
}

#[test]
fn data_goes_as_fast_as_it_may_each_way_and_all_connections_share_that() {
    in_a_world("data_goes_as_fast_as_it_may_each_way_and_all_connections_share_that", async |world| {
        world.echo("93.184.216.34:80");
        let at = "93.184.216.34:80";
        for limits in [
            Limits { bytes_out_per_second: Some(400_000), ..Limits::default() },
            Limits { bytes_in_per_second: Some(400_000), ..Limits::default() },
        ] {
            let (guest, egress) = world.guest_with(NetworkPolicy::default(), limits);
            let streams = [guest.connect(at).await.unwrap(), guest.connect(at).await.unwrap()];
            let [a, b] = streams.map(|stream| tokio::spawn(there_and_back(stream, 300_000)));
            let took = a.await.unwrap().max(b.await.unwrap());
            println!("600,000 bytes at 400,000 a second, {limits:?}: {took:?}");
            // An eighth of a second's may go at once.
            assert!((Duration::from_millis(1_350)..Duration::from_secs(20)).contains(&took), "{took:?}");
            assert_eq!((egress.counters().bytes_out, egress.counters().bytes_in), (600_000, 600_000));
        }
    });
}

#[test]
fn all_guests_share_what_the_host_gives_them() {
    in_a_world("all_guests_share_what_the_host_gives_them", async |world| {
        world.echo("93.184.216.34:80");
        let budget = Budget::default().bytes_out_per_second(400_000).begun_per_second(20);
        let ((one, _first), (other, _second)) = (world.guest_of(&budget), world.guest_of(&budget));
        let at = "93.184.216.34:80";
        let streams = [one.connect(at).await.unwrap(), other.connect(at).await.unwrap()];
        let [a, b] = streams.map(|stream| tokio::spawn(there_and_back(stream, 300_000)));
        let took = a.await.unwrap().max(b.await.unwrap());
        assert!((Duration::from_millis(1_350)..Duration::from_secs(20)).contains(&took), "{took:?}");
        // What is too much is lost, and asked for again.
        let begun = Instant::now();
        for guest in [&one, &other].into_iter().cycle().take(30) {
            guest.connect(at).await.unwrap();
        }
        assert!(begun.elapsed() > Duration::from_millis(400), "{:?}", begun.elapsed());
    });
}

#[test]
fn datagrams_that_are_too_much_are_lost() {
    in_a_world("datagrams_that_are_too_much_are_lost", async |world| {
        let server = world.receive("93.184.216.34:99");
        let limits = Limits { bytes_out_per_second: Some(80_000), ..Limits::default() };
        let (guest, egress) = world.guest_with(NetworkPolicy::default(), limits);
        let socket = guest.datagrams("93.184.216.34:99");
        let begun = Instant::now();
        for _ in 0..100 {
            socket.send(&[1; 1000]).await.unwrap();
        }
        let most = 10 + 1 + 80 * u64::try_from(begun.elapsed().as_millis()).unwrap() / 1000;
        let mut received = 0;
        while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(300), server.recv(&mut [0; 2000])).await {
            received += 1;
        }
        assert!((5..=most + 40).contains(&received), "{received} of 100 came through at 80 a second, ten at once");
        assert_eq!(egress.counters().bytes_out, received * 1000);
    });
}
