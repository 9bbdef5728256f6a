//! Many slots on the real kernel, and what is left of them. Skipped by name where the process may make none.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use wrenn_net::{Slot, SlotPool};

/// What each test counts is the whole program's.
static ALONE: Mutex<()> = Mutex::new(());

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The threads that close something, or wait for something to be made.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.starts_with("wrenn-net") || name.starts_with("tokio")).count()
}

/// The network namespaces of the whole machine, as far as the kernel tells: its allocator's count, which lags behind.
fn namespaces() -> Option<u64> {
    let slabs = std::fs::read_to_string("/proc/slabinfo").ok()?;
    let line = slabs.lines().find(|line| line.starts_with("net_namespace "))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The processes of the user of [`By::User`]. What is left of a user namespace is one of these, or a network namespace.
fn processes_of_the_user() -> usize {
    let statuses = std::fs::read_dir("/proc").unwrap().flatten();
    let statuses = statuses.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    let uid = format!("Uid:\t{USER}\t");
    statuses.filter(|status| status.contains(&uid)).count()
}

/// Who makes slots.
#[derive(Clone, Copy, Debug)]
enum By {
    /// Whoever runs the tests.
    Root,
    /// A user without any right of root's, who may open `/dev/net/tun`.
    User,
}

impl By {
    /// This test binary once more, for a test of its own.
    fn run(self, test: &str) -> Command {
        let me = std::env::current_exe().unwrap();
        let mut command = match self {
            Self::Root => Command::new(me),
            Self::User => {
                // By a descriptor, since another user may have no way to the binary by its path.
                let line = format!(
                    "exec 3< \"$0\"; mount -t tmpfs none /mnt; mknod /mnt/tun c 10 200; chmod 666 /mnt/tun\n\
                     mount --bind /mnt/tun /dev/net/tun; exec setpriv --reuid={USER} --regid={USER} --clear-groups \
                     --bounding-set=-all --inh-caps=-all /proc/self/fd/3 \"$@\""
                );
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "private", "sh", "-e", "-c", &line]).arg(me);
                command
            }
        };
        command.args(["--exact", test, "--nocapture"]).current_dir("/");
        command
    }
}

/// One that no other test has.
const USER: u32 = 1_234_568;

fn eventually(what: &str, within: Duration, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < within, "{what} is not so after {within:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn may_make_slots(test: &str) -> bool {
    let made = Slot::create();
    if let Err(error) = &made {
        println!("skipped: {test}: {error}");
    }
    made.is_ok()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn slots_are_ready_from_the_first_one_on_and_each_is_used_once() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !may_make_slots("slots_are_ready_from_the_first_one_on_and_each_is_used_once") {
        return;
    }
    runtime().block_on(async {
        let pool = SlotPool::new(3);
        assert_eq!(pool.ready(), 0, "nobody has asked for one");
        let mut taken = vec![pool.take().await.unwrap()];
        for _ in 0..5 {
            eventually("the pool is full", Duration::from_secs(10), || pool.ready() == 3);
            taken.push(pool.take().await.unwrap());
        }
        let mut namespaces: Vec<u64> =
            taken.iter().map(|(slot, ..)| nix::sys::stat::fstat(slot.namespace()).unwrap().st_ino).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        assert_eq!(namespaces.len(), 6);
    });
}

#[test]
fn a_thousand_slots_of_fifty_tasks_leave_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !may_make_slots("a_thousand_slots_of_fifty_tasks_leave_nothing") {
        return;
    }
    let (before, namespaces_before) = (descriptors(), namespaces());
    let begun = Instant::now();
    runtime().block_on(async {
        let pool = SlotPool::new(8);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let pool = pool.clone();
            tasks.spawn(async move {
                for _ in 0..20 {
                    let (slot, tap, gate) = pool.take().await.unwrap();
                    // Nobody is there yet, and nobody answers.
                    let answer = tokio::time::timeout(Duration::from_millis(1), slot.connect(1)).await;
                    assert!(!matches!(answer, Ok(Ok(_))), "{answer:?}");
                    drop((tap.into_queue(), gate));
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    });
    println!("1,000 slots made, used and dropped in {:?}", begun.elapsed());
    eventually("what was held is given back", Duration::from_secs(120), || {
        // One that was tried before may still be closing.
        descriptors() <= before && threads() == 0
    });
    match namespaces_before {
        Some(before) => they_are_gone(before),
        None => println!("skipped: the count of namespaces: /proc/slabinfo does not tell it"),
    }
}

#[test]
fn a_user_without_rights_makes_a_thousand_slots_and_leaves_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !may_make_slots("a_user_without_rights_makes_a_thousand_slots_and_leaves_nothing") {
        return;
    }
    let before = namespaces().expect("root can read it");
    // It has no such count, which it says; all else it does.
    let output = By::User.run("a_thousand_slots_of_fifty_tasks_leave_nothing").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1,000 slots made") && said.contains("1 passed"), "{said}");
    println!("as a user: {}", said.lines().find(|line| line.contains("1,000 slots made")).unwrap_or_default());
    they_are_gone(before);
}

/// The namespaces that there were not `before`.
fn they_are_gone(before: u64) {
    eventually("the namespaces are gone", Duration::from_secs(120), || {
        namespaces().unwrap_or_default() <= before + ROOM && processes_of_the_user() == 0
    });
}

#[test]
fn a_program_that_is_killed_at_any_step_leaves_no_namespace() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !may_make_slots("a_program_that_is_killed_at_any_step_leaves_no_namespace") {
        return;
    }
    let Some(before) = namespaces() else {
        println!(
            "skipped: a_program_that_is_killed_at_any_step_leaves_no_namespace: /proc/slabinfo does not tell how many there are"
        );
        return;
    };
    for (round, by) in (0..40_u64).zip([By::Root, By::User].into_iter().cycle()) {
        let mut program = by.run("program_that_makes_slots");
        let mut program = program.env(IS_PROGRAM, "1").stdout(Stdio::piped()).spawn().unwrap();
        let output = program.stdout.take().unwrap();
        assert!(BufReader::new(output).lines().map_while(Result::ok).any(|line| line.contains(BEGUN)), "{by:?}");
        // A slot takes some milliseconds: each round is another step of one.
        std::thread::sleep(Duration::from_micros(20_000 + 371 * round));
        program.kill().unwrap();
        program.wait().unwrap();
    }
    // Each has had four and more.
    they_are_gone(before);
}

/// The program of the test above; nothing by itself.
#[test]
fn program_that_makes_slots() {
    if std::env::var_os(IS_PROGRAM).is_none() {
        return;
    }
    runtime().block_on(async {
        let pool = SlotPool::new(4);
        println!("{BEGUN}");
        loop {
            drop(pool.take().await.unwrap());
        }
    });
}

const IS_PROGRAM: &str = "WRENN_TEST_MAKES_SLOTS";
const BEGUN: &str = "it makes slots from now on";
/// The allocator counts some that are free, and other programs make some.
const ROOM: u64 = 24;
