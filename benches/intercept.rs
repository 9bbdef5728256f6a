//! A request over HTTPS that a rule puts a key into, beside the same one of a connection that passes untouched.
//!
//! Guest, slot and server are the same; the names are two, and a rule is for one of them. It needs root.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use wrenn_net::{Authority, Interceptor, NetworkPolicy, Rule, Secret, Slot};

mod support;
#[path = "../wrenn-net/tests/web/mod.rs"]
mod web;
#[path = "../wrenn-net/tests/world/mod.rs"]
mod world;

use support::{Goal, report_percentiles};
use web::{Client, tls};
use world::guest::Guest;
use world::{World, in_a_world};

const REQUESTS: usize = 1000;
const CONNECTIONS: usize = 100;
const AT: &str = "93.184.216.34:443";
/// With a rule, and without.
const NAMES: [&str; 2] = ["api.example", "plain.example"];

fn main() {
    in_a_world("intercept", async |world| measure(&world).await.expect("it can be measured"));
}

async fn measure(world: &World) -> anyhow::Result<()> {
    let servers = web::Authority::new("servers");
    servers.serve(world.listen(AT), &NAMES, &["h2", "http/1.1"]);
    world.dns(&NAMES.map(|name| (name, &[[93, 184, 216, 34]][..])));
    let authority = Authority::generate()?;
    let trusts = [authority.certificate(), servers.pem()].concat();
    let interceptor = Arc::new(Interceptor::new(authority).trust(servers.pem())?);
    let rule = Rule::of(NAMES[0])?.set_header("x-key", "Bearer ${secret.KEY}")?;
    let secrets = BTreeMap::from([("KEY".to_owned(), Secret::new("k/1"))]);
    let (slot, tap, gate) = Slot::create()?;
    let policy = NetworkPolicy::default().rule(rule)?;
    let _egress = world.way_out(policy).intercept(interceptor, secrets).open(gate)?;
    let guest = Guest::plug(slot, tap);
    for (protocol, short) in [("http/1.1", "h1"), ("h2", "h2")] {
        let mut clients = Vec::new();
        for name in NAMES {
            clients.push(connect(&guest, name, &trusts, protocol).await?);
        }
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..=REQUESTS {
            for (which, client) in clients.iter_mut().enumerate() {
                let begun = Instant::now();
                ask(client, which).await?;
                if round > 0 {
                    times[which].push(begun.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
        let name = format!("intercept_request/{short}");
        report_percentiles(&name, "us", &times[0], &times[1], [Goal::AtMost(2.0), Goal::None]);
    }
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..=CONNECTIONS {
        for (which, name) in NAMES.into_iter().enumerate() {
            let begun = Instant::now();
            ask(&mut connect(&guest, name, &trusts, "h2").await?, which).await?;
            if round > 0 {
                times[which].push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    report_percentiles("intercept_connect", "ms", &times[0], &times[1], [Goal::None, Goal::None]);
    Ok(())
}

async fn connect(guest: &Guest, name: &str, trusts: &str, protocol: &str) -> anyhow::Result<Client> {
    let stream = guest.connect(AT).await?;
    stream.set_nodelay(true)?;
    Ok(Client::over_tls(tls(stream, name, trusts, &[protocol]).await?).await)
}

async fn ask(client: &mut Client, which: usize) -> anyhow::Result<()> {
    let (status, said) = client.get(&format!("https://{}/", NAMES[which]), &[]).await;
    ensure!(status == 200 && said.contains("x-key: Bearer k/1") == (which == 0), "{status}: {said}");
    Ok(())
}
