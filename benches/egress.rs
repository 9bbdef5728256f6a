//! A guest's way out, beside the same guest behind a veth and NAT.
//!
//! The guest is a kernel's own stack on a tap, whose frames two threads of this program carry, in the subject and in the
//! reference. The internet is a network namespace. It needs root, `ip` and `nft`.

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wrenn_net::{Egress, NetworkPolicy, Slot};

mod support;
#[path = "../wrenn-net/tests/world/mod.rs"]
mod world;

use support::{Goal, note, report, report_percentiles, skipped};
use world::guest::Guest;
use world::{World, in_a_world};

const CONNECTS: usize = 300;
const BYTES: usize = 256 << 20;
const ANSWER_MAX: Duration = Duration::from_secs(5);
const ECHO: &str = "93.184.216.34:80";
/// Takes what it gets, and says at the end that it has.
const SINK: &str = "93.184.216.34:81";
/// Gives without end.
const SOURCE: &str = "93.184.216.34:82";

fn main() {
    if Command::new("nft").arg("-v").output().is_err() {
        skipped("egress", &"its reference wants `nft`: install `nftables`");
        return;
    }
    in_a_world("egress", async |world| measure(&world).await.expect("it can be measured"));
}

async fn measure(world: &World) -> anyhow::Result<()> {
    world.echo(ECHO);
    sink(world);
    source(world);
    world.dns(&[("example.com", &[[93, 184, 216, 34]])]);
    let (guest, egress) = world.guest(NetworkPolicy::default());
    let reference = behind_nat()?;
    connects(&guest, &reference).await?;
    bulk(&guest, &reference).await?;
    names(&guest).await?;
    with_others(world, &guest, &egress).await
}

async fn connects(guest: &Guest, reference: &Guest) -> anyhow::Result<()> {
    let (mut connect, mut request) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..=CONNECTS {
        for (which, guest) in [guest, reference].into_iter().enumerate() {
            let begun = Instant::now();
            let mut stream = guest.connect(ECHO).await?;
            let connected = begun.elapsed();
            stream.set_nodelay(true)?;
            stream.write_all(&[1; 200]).await?;
            stream.read_exact(&mut [0; 200]).await?;
            if round > 0 {
                connect[which].push(connected.as_secs_f64() * 1e3);
                request[which].push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    report_percentiles("egress_connect", "ms", &connect[0], &connect[1], [Goal::AtMost(1.3), Goal::None]);
    report_percentiles("egress_request", "ms", &request[0], &request[1], [Goal::AtMost(1.3), Goal::None]);
    Ok(())
}

async fn bulk(guest: &Guest, reference: &Guest) -> anyhow::Result<()> {
    for (name, at) in [("out", SINK), ("in", SOURCE)] {
        let (mut speeds, mut costs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for round in 0..=5 {
            for (which, guest) in [guest, reference].into_iter().enumerate() {
                let stream = guest.connect(at).await?;
                let (begun, cpu) = (Instant::now(), processor_time()?);
                if at == SINK {
                    give(stream).await?
                } else {
                    take(stream).await?
                }
                if round > 0 {
                    let mib = (BYTES >> 20) as f64;
                    speeds[which].push(mib / begun.elapsed().as_secs_f64());
                    costs[which].push((processor_time()? - cpu).as_secs_f64() * 1024.0 / mib);
                }
            }
        }
        let [speed, of_reference] = speeds.map(|samples| support::percentile(&samples, 50));
        report(&format!("egress_throughput/{name}"), "MiB/s", speed, of_reference, Goal::AtLeast(0.9));
        let [cost, of_reference] = costs.map(|samples| support::percentile(&samples, 50));
        report(&format!("egress_cpu/{name}"), "s/GiB", cost, of_reference, Goal::None);
    }
    Ok(())
}

async fn give(mut stream: TcpStream) -> anyhow::Result<()> {
    let block = vec![1; 1 << 20];
    for _ in 0..BYTES >> 20 {
        stream.write_all(&block).await?;
    }
    stream.shutdown().await?;
    ensure!(stream.read_u8().await? == 1, "all of it has come");
    Ok(())
}

async fn take(mut stream: TcpStream) -> anyhow::Result<()> {
    let (mut block, mut got) = (vec![0; 1 << 20], 0);
    while got < BYTES {
        let len = stream.read(&mut block).await?;
        ensure!(len > 0, "it ended after {got} bytes");
        got += len;
    }
    Ok(())
}

/// A question that was answered before, beside a round trip on the tap: the slot's kernel refuses a connection. The guest's
/// program is the same for both: a thread in its namespace that waits in the kernel.
async fn names(guest: &Guest) -> anyhow::Result<()> {
    // Of a message with one question (RFC 1035): recursion desired, `example.com`, A, IN.
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
    let closed = format!("{}:1", wrenn_net::HOST_ADDRESS).parse().context("an address")?;
    let namespace = guest.namespace.clone();
    let ask = move || -> anyhow::Result<_> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(ANSWER_MAX))?;
        socket.connect("1.1.1.1:53")?;
        let (mut answers, mut trips) = (Vec::new(), Vec::new());
        for round in 0..=1000 {
            let begun = Instant::now();
            socket.send(question)?;
            let len = socket.recv(&mut [0; 512])?;
            let answered = begun.elapsed();
            ensure!(len > question.len(), "an answer has an address");
            let begun = Instant::now();
            let refused = std::net::TcpStream::connect_timeout(&closed, ANSWER_MAX);
            let trip = begun.elapsed();
            ensure!(refused.is_err(), "the slot listens on port 1");
            if round > 0 {
                answers.push(answered.as_secs_f64() * 1e6);
                trips.push(trip.as_secs_f64() * 1e6);
            }
        }
        Ok((answers, trips))
    };
    let (answers, trips) = tokio::task::spawn_blocking(move || namespace.run(ask)).await??;
    report_percentiles("dns", "us", &answers, &trips, [Goal::AtMost(1.5), Goal::None]);
    Ok(())
}

/// The same with a hundred more guests that have ways out.
async fn with_others(world: &World, guest: &Guest, egress: &Egress) -> anyhow::Result<()> {
    let mut alone = Vec::new();
    for _ in 0..CONNECTS {
        let begun = Instant::now();
        drop(guest.connect(ECHO).await?);
        alone.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let others: Vec<_> = (0..100).map(|_| world.guest(NetworkPolicy::default())).collect();
    let mut beside = Vec::new();
    for round in 0..CONNECTS {
        // One of the others does the same.
        drop(others[round % others.len()].0.connect(ECHO).await?);
        let begun = Instant::now();
        drop(guest.connect(ECHO).await?);
        beside.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    report_percentiles("egress_connect/100", "ms", &beside, &alone, [Goal::AtMost(1.3), Goal::None]);
    note(&format!("{} connections were made", egress.counters().connections));
    Ok(())
}

fn sink(world: &World) {
    let listener = world.listen(SINK);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut block = vec![0; 1 << 20];
                while stream.read(&mut block).await? > 0 {}
                stream.write_u8(1).await
            });
        }
    });
}

fn source(world: &World) {
    let listener = world.listen(SOURCE);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let block = vec![1; 1 << 20];
                while stream.write_all(&block).await.is_ok() {}
            });
        }
    });
}

/// A guest whose slot has a veth to the host and translates addresses, as others do it.
fn behind_nat() -> anyhow::Result<Guest> {
    let (slot, tap, gate) = Slot::create()?;
    drop(gate);
    let here = File::open("/proc/thread-self/ns/net")?;
    run("ip", &["link", "add", "nat0", "type", "veth", "peer", "name", "up0"])?;
    let inside = |work: &(dyn Fn() -> anyhow::Result<()> + Sync)| {
        let enter = || {
            setns(slot.namespace(), CloneFlags::CLONE_NEWNET)?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().expect("it does not panic"))
    };
    // A link goes to a namespace by a process that is in it.
    inside(&|| {
        let mut holder = Command::new("sleep").arg("60").spawn()?;
        let pid = holder.id().to_string();
        let moved = std::thread::scope(|scope| {
            let go = || {
                setns(here.as_fd(), CloneFlags::CLONE_NEWNET)?;
                run("ip", &["link", "set", "up0", "netns", &pid])
            };
            scope.spawn(go).join().expect("it does not panic")
        });
        holder.kill()?;
        holder.wait()?;
        moved?;
        run("nft", &["delete table ip wrenn"])?;
        run("ip", &["addr", "add", "10.200.0.2/30", "dev", "up0"])?;
        run("ip", &["link", "set", "up0", "up"])?;
        run("ip", &["route", "add", "default", "via", "10.200.0.1"])?;
        forward("up0")
    })?;
    run("ip", &["addr", "add", "10.200.0.1/30", "dev", "nat0"])?;
    run("ip", &["link", "set", "nat0", "up"])?;
    forward("host0")?;
    Ok(Guest::plug(slot, tap))
}

fn forward(out: &str) -> anyhow::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let rules = format!(
        "table ip nat {{ chain out {{ type nat hook postrouting priority srcnat; oifname {out} masquerade; }}; }}"
    );
    run("nft", &[&rules])
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("{program} did not start"))?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Of this whole program: the kernel's work for a packet is that of whoever sent it.
fn processor_time() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}
