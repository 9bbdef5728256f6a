//! Network slots: made when they are needed, and taken from the pool.
//!
//! The reference of `slot_cold` is the same namespace, tap, rules and route as a script makes them, by processes of `ip` and
//! `nft`. That of `slot_pool` is `slot_cold`. It needs root.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use wrenn_net::{Slot, SlotPool};

mod support;
use support::{Goal, percentile, report, report_percentiles, skipped};

const ROUNDS: usize = 100;
/// What taking a slot may take, in ms.
const POOL_LIMIT_MS: f64 = 0.2;
const COLD_LIMIT_MS: f64 = 15.0;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if let Err(error) = Slot::create() {
        skipped("slots", &error);
        return Ok(());
    }
    let has_tools = ["ip", "nft"].iter().all(|tool| Command::new(tool).arg("-V").output().is_ok());
    if !has_tools {
        skipped("slot_cold's reference", &"install `iproute2` and `nftables`");
    }
    let (mut cold, mut scripted, mut pooled) = (Vec::new(), Vec::new(), Vec::new());
    let pool = SlotPool::new(4);
    drop(pool.take().await?);
    for round in 0..=ROUNDS {
        let begun = Instant::now();
        let slot = tokio::task::spawn_blocking(Slot::create).await??;
        let made_cold = begun.elapsed();
        drop(slot);
        let made_by_script = if has_tools { script(round)? } else { made_cold };
        let patience = Instant::now();
        while pool.ready() == 0 {
            ensure!(patience.elapsed() < Duration::from_secs(10), "the pool stays empty");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begun = Instant::now();
        let slot = pool.take().await?;
        let taken = begun.elapsed();
        drop(slot);
        // The first round loads modules.
        if round > 0 {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            cold.push(ms(made_cold));
            scripted.push(ms(made_by_script));
            pooled.push(ms(taken));
        }
    }
    report_percentiles("slot_cold", "ms", &cold, &scripted, [Goal::AtMost(1.0), Goal::None]);
    report("slot_cold/limit", "ms", percentile(&cold, 50), COLD_LIMIT_MS, Goal::AtMost(1.0));
    report_percentiles("slot_pool", "ms", &pooled, &cold, [Goal::AtMost(1.0), Goal::None]);
    report("slot_pool/limit", "ms", percentile(&pooled, 50), POOL_LIMIT_MS, Goal::AtMost(1.0));
    Ok(())
}

/// Makes a slot by processes, and removes it. Returns how long the making took.
fn script(round: usize) -> anyhow::Result<Duration> {
    let name = format!("wrenn-bench-{round}-{}", std::process::id());
    let rules = "table ip wrenn { chain guest { type filter hook prerouting priority mangle; \
        iifname lo meta mark 1 meta l4proto tcp tproxy to 127.0.0.1:1000 accept; \
        iifname != tap0 accept; ip daddr 169.254.0.22 accept; tcp flags & (syn|ack) == syn drop; \
        meta l4proto tcp tproxy to 127.0.0.1:1000 meta mark set 1 accept; \
        meta l4proto udp tproxy to 127.0.0.1:1001 meta mark set 1 accept; drop; }; }";
    let begun = Instant::now();
    run("ip", &["netns", "add", &name])?;
    let made = (|| {
        let inside = |arguments: &[&str]| run("ip", &[&["-n", &name], arguments].concat());
        inside(&["tuntap", "add", "tap0", "mode", "tap"])?;
        inside(&["link", "set", "lo", "up"])?;
        inside(&["addr", "add", "169.254.0.22/30", "dev", "tap0"])?;
        inside(&["link", "set", "tap0", "up"])?;
        inside(&["rule", "add", "fwmark", "1", "lookup", "100"])?;
        inside(&["route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", "100"])?;
        run("ip", &["netns", "exec", &name, "nft", rules])
    })();
    let took = begun.elapsed();
    run("ip", &["netns", "del", &name])?;
    made.map(|()| took)
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("{program} did not start"))?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
