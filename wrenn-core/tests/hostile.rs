//! A guest that does its worst never makes a call of the host's outlast its time, never keeps its time-to-live from ending
//! it, and costs its neighbour nothing.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::run;
use tokio::time::timeout;
use wrenn_core::{Exit, Host, Sandbox};

/// What root in a guest may do, and the name of it.
const DEEDS: [(&str, &str); 8] = [
    ("its network down", "ip link set eth0 down; sleep 600"),
    ("a fork bomb", "bomb() { bomb | bomb & }; bomb; sleep 600"),
    (
        "all of its memory",
        "python3 -c 'import mmap, time\nl = []\nwhile True: l.append(bytearray(1 << 20))'; sleep 600",
    ),
    ("a full disk", "dd if=/dev/zero of=/full bs=1M; sync; sleep 600"),
    ("its clock in 2000", "date -s 2000-01-01; sleep 600"),
    ("its clock in 2100", "date -s 2100-01-01; sleep 600"),
    ("a frozen file system", "fsfreeze -f / || fsfreeze -f /.wrenn/drive; sleep 600"),
    (
        "a flood of connections",
        "python3 -c 'import socket, time\nl = []\nwhile True:\n  try:\n    s = socket.create_connection((\"127.0.0.1\", 49983), 1); \
         s.send(b\"POST /init HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: 1000000\\r\\n\\r\\n\"); l.append(s)\n  except OSError: time.sleep(0.01)'",
    ),
];

/// A command's time, as the host counts it.
const COMMAND_MAX: Duration = Duration::from_secs(5);
/// What an emulated machine on a busy host may take beyond it.
const GRACE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn no_deed_of_a_guest_holds_a_call_its_end_or_its_neighbour_up() {
    vm_test_or_return!();
    let host = common::host().await;
    let neighbour = Sandbox::create(&host, "base").await.unwrap();
    for (name, line) in DEEDS {
        let sandbox = do_deed(&host, line).await;
        let asked = Instant::now();
        let command = sandbox.command("true").timeout(COMMAND_MAX).output();
        let answer = timeout(Duration::from_secs(60), command).await;
        assert!(asked.elapsed() < COMMAND_MAX + GRACE, "{name}: a command took {:?}: {answer:?}", asked.elapsed());
        let asked = Instant::now();
        assert_eq!(run(&neighbour, "echo here").await, "here", "{name}");
        assert!(asked.elapsed() < GRACE, "{name}: the neighbour took {:?}", asked.elapsed());

        sandbox.set_ttl(Some(Duration::from_secs(1))).await.unwrap();
        let asked = Instant::now();
        let exit = timeout(Duration::from_secs(60), sandbox.wait()).await.unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1) + GRACE, "{name}: it lived on for {:?}", asked.elapsed());
        // A guest that runs out of memory may end by itself first.
        assert!(matches!(exit, Exit::Expired | Exit::VmEnded { .. }), "{name}: {exit:?}");
    }
    neighbour.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_beside_any_deed_takes_less_than_a_second() {
    vm_test_or_return!();
    let host = common::host().await;
    for (name, line) in DEEDS {
        let sandbox = do_deed(&host, line).await;
        let pausing = tokio::spawn({
            let sandbox = sandbox.clone();
            async move { sandbox.pause().await.map(drop) }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let asked = Instant::now();
        timeout(Duration::from_secs(60), sandbox.kill()).await.unwrap().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1), "{name}: {:?}", asked.elapsed());
        // The pause was overtaken, or done just before.
        let paused = timeout(Duration::from_secs(60), pausing).await.unwrap().unwrap();
        let left = host.paused(sandbox.id()).await;
        assert!(paused.is_err() || left.is_ok(), "{name}: {paused:?}");
        if let Ok(left) = left {
            left.delete().await.unwrap();
        }
    }
}

/// A sandbox whose root has done it, some time ago.
async fn do_deed(host: &Host, line: &str) -> Sandbox {
    let sandbox = Sandbox::create(host, "base").await.unwrap();
    let deed = sandbox.command("bash").args(["-c", line]).user("root").spawn().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(deed);
    sandbox
}
