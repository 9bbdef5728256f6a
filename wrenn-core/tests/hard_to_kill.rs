//! Whatever runs in a guest, its agent goes on: no program takes it down, and each is stopped.

mod common;

use std::time::Duration;

use common::{run, sandbox};
use wrenn_core::{AgentError, Error, Event};

#[tokio::test]
async fn a_guest_keeps_memory_processes_and_the_processor_for_its_agent() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let groups = run(
        &sandbox,
        "cd /sys/fs/cgroup && cat sandbox/ptys/cpu.weight sandbox/user/cpu.weight agent/cgroup.procs agent/memory.min",
    )
    .await;
    assert_eq!(groups, "200\n50\n1\n25165824");
    let total = run(&sandbox, "awk '/MemTotal/ { print $2 * 1024 }' /proc/meminfo").await.parse::<u64>().unwrap();
    let most = run(&sandbox, "cat /sys/fs/cgroup/sandbox/memory.max").await.parse::<u64>().unwrap();
    assert_eq!(most, (total - (total / 8).min(128 << 20)) / 4096 * 4096);
    assert!(run(&sandbox, "cat /sys/fs/cgroup/sandbox/pids.max").await.parse::<u64>().unwrap() > 100);
    assert_eq!(run(&sandbox, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj").await, "100\n100");
    let own = run(&sandbox, "grep ^0: /proc/self/cgroup").await;
    assert!(own.starts_with("0::/sandbox/user/p"), "{own}");
    assert_eq!(
        run(&sandbox, "ulimit -n; hostname >/dev/null; ip -o addr show lo | grep -c 127.0.0.1").await,
        "65536\n1"
    );
}

#[tokio::test]
async fn no_program_takes_the_agent_down() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;

    let bomb = sandbox.command("bash").args(["-c", "bomb() { bomb | bomb & }; bomb; sleep 100"]);
    let stopped = bomb.timeout(Duration::from_secs(5)).output().await.unwrap_err();
    assert!(matches!(stopped, Error::CommandTimedOut { .. }), "a fork bomb: {stopped}");
    assert_eq!(run(&sandbox, "echo up").await, "up");
    // The call ended in time; the guest's kernel ends thousands of processes in its own.
    let wait = "for i in $(seq 100); do n=$(ls -d /proc/[0-9]*/exe | wc -l); [ $n -lt 100 ] && break; sleep 0.2; done; echo $n";
    let left = run(&sandbox, wait).await.parse::<u32>().unwrap();
    assert!(left < 100, "{left} processes are left of the bomb");

    let hog = sandbox.command("python3").args(["-c", "kept = [bytearray(b'x' * (8 << 20)) for _ in range(10**6)]"]);
    let status = hog.timeout(Duration::from_secs(60)).output().await.unwrap().status;
    assert!(!status.success(), "a memory hog: {status}");
    assert_eq!(run(&sandbox, "echo up").await, "up");

    let flood =
        sandbox.command("sh").args(["-c", "yes | head -c 30000000 >/dev/stderr & yes | head -c 30000000; wait"]);
    let mut flood = flood.timeout(Duration::from_secs(60)).spawn().await.unwrap();
    assert!(flood.wait().await.unwrap().success(), "an output flood");
    let zeros = sandbox.command("cat").arg("/dev/zero").timeout(Duration::from_secs(2)).output_limit(1 << 20);
    zeros.output().await.unwrap_err();
    let rss = run(&sandbox, "awk '/VmHWM/ { print $2 }' /proc/1/status").await.parse::<u64>().unwrap();
    assert!(rss < 48 << 10, "the agent took {rss} KiB");

    for user in ["nobody", "root"] {
        // Its own shell is spared, as by any kernel.
        sandbox.command("sh").args(["-c", "kill -9 -1"]).user(user).output().await.unwrap();
        assert_eq!(run(&sandbox, "echo up").await, "up");
    }
    // Who stops whatever it may, also what is only about to be its own, stops itself alone.
    let line = "while True:\n  try: os.kill(-1, 19)\n  except OSError: pass";
    let stopper = sandbox.command("python3").args(["-c", &format!("import os\n{line}")]).user("nobody");
    let stopper = stopper.spawn().await.unwrap();
    for _ in 0..40 {
        // A command of the same user is stopped before it ends, or is done before it is stopped.
        let stopped = sandbox.command("true").user("nobody").timeout(Duration::from_millis(200)).output().await;
        match stopped {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(Error::CommandTimedOut { .. }) => {}
            // It is stopped before it has become the program: the agent says so, and goes on.
            Err(Error::Agent { source: AgentError::Unavailable { .. }, .. }) => {}
            Err(error) => panic!("the agent was stopped too: {error:?}"),
        }
        let other = sandbox.command("true").timeout(Duration::from_secs(20)).output().await.unwrap();
        assert!(other.status.success(), "another user's: {other:?}");
    }
    assert_eq!(run(&sandbox, "echo up").await, "up");
    stopper.kill().await.unwrap();
    let line = "kill -9 1; kill -11 1; kill -4 1; kill -1 1; sleep 0.5; grep -l ' Z ' /proc/[0-9]*/stat | wc -l";
    let killer = sandbox.command("sh").args(["-c", line]).user("root").output().await.unwrap();
    assert_eq!((killer.stdout_utf8().trim(), killer.stderr_utf8()), ("0", String::new()), "root may, and it is spared");
    assert_eq!(run(&sandbox, "echo up; cat /proc/1/comm").await, "up\ninit");
}

/// A program that hears that it is to end, and takes its time.
const TRAP: &str = "trap 'echo heard >/dev/console; sleep 0.5; exit' TERM; echo ready; while :; do sleep 0.1; done";

#[tokio::test]
async fn a_guest_that_switches_itself_off_ends_its_programs_first() {
    vm_test_or_return!();
    // What `poweroff`, `halt` and `reboot` of busybox and sysvinit send, Ctrl-Alt-Del, and a power failure.
    for signal in ["USR2", "USR1", "TERM", "INT", "PWR"] {
        let (_host, sandbox) = sandbox().await;
        let vmm = sandbox.vmm_pid().await.unwrap();
        let mut trap = sandbox.command("sh").args(["-c", TRAP]).user("root").spawn().await.unwrap();
        assert!(matches!(trap.next_event().await.unwrap(), Some(Event::Stdout(_))));
        let line = format!("kill -{signal} 1; sleep 20");
        let asker = sandbox.command("sh").args(["-c", &line]).user("root").spawn().await.unwrap();
        for _ in 0..200 {
            if !common::is_alive(vmm) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let console = sandbox.console();
        assert!(!common::is_alive(vmm), "SIG{signal}: it still runs: {console}");
        assert!(console.contains("switching off") && console.contains("heard"), "SIG{signal}: {console}");
        assert!(!console.contains("panic"), "SIG{signal}: {console}");
        drop((trap, asker));
    }
}
