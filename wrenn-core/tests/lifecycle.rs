//! A seeded random walk over everything that can happen to sandboxes, with a model of each branch's memory and files.
//!
//! `WRENN_TEST_SEED` repeats a walk, `WRENN_TEST_STEPS` makes it longer. A failure prints both and the log of operations.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use common::run;
use sha2::{Digest, Sha256};
use wrenn_core::{Exit, Host, PausedSandbox, Sandbox, Tracking};

/// Serves a memory region and files to one client after another, a line a request and a line an answer. The bytes of a
/// write follow from its seed, so that the model can make them too.
const SERVER: &str = r"
import hashlib, os, socketserver
memory = bytearray(4 << 20)
def fill(seed, length): return bytes((seed + 7 * i) & 255 for i in range(256)) * (length // 256)
def opened(name): return open(name, 'r+b' if os.path.exists(name) else 'w+b')
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        word, *rest = self.rfile.readline().decode().split()
        out = 'ok'
        if word == 'memory':
            at, length, seed = map(int, rest); memory[at:at + length] = fill(seed, length)
        elif word == 'memory-zero':
            at, length = map(int, rest); memory[at:at + length] = bytes(length)
        elif word == 'write':
            with opened(rest[0]) as f: f.seek(int(rest[1])); f.write(fill(int(rest[3]), int(rest[2])))
        elif word == 'zero':
            with opened(rest[0]) as f: f.seek(int(rest[1])); f.write(bytes(int(rest[2])))
        elif word == 'truncate':
            with opened(rest[0]) as f: f.truncate(int(rest[1]))
        elif word == 'hash':
            sums = [hashlib.sha256(memory).hexdigest()]
            for name in rest:
                sums.append(hashlib.sha256(open(name, 'rb').read()).hexdigest() if os.path.exists(name) else '-')
            out = ' '.join(sums)
        self.wfile.write((out + '\n').encode())
socketserver.TCPServer.allow_reuse_address = True
print('ready', flush=True)
socketserver.TCPServer(('127.0.0.1', 7000), Handler).serve_forever()
";

const FILES: [&str; 4] = ["/home/user/a", "/home/user/b", "/dev/shm/c", "/home/user/dir-d"];
const MEMORY_BYTES: usize = 4 << 20;
const FILE_BYTES_MAX: u64 = 1 << 20;
const BRANCHES_MAX: usize = 3;

/// What a branch's memory and files have to be.
#[derive(Clone)]
struct Model {
    memory: Vec<u8>,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Model {
    fn new() -> Self {
        Self { memory: vec![0; MEMORY_BYTES], files: BTreeMap::new() }
    }

    fn sums(&self) -> String {
        let mut sums = hex(&self.memory);
        for name in FILES {
            write!(sums, " {}", self.files.get(name).map_or_else(|| "-".to_owned(), |bytes| hex(bytes))).unwrap();
        }
        sums
    }

    fn write(&mut self, name: &'static str, at: usize, bytes: &[u8]) {
        let file = self.files.entry(name).or_default();
        file.resize(file.len().max(at + bytes.len()), 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn fill(seed: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((seed + 7 * (i as u64 % 256)) & 255).unwrap()).collect()
}

enum Place {
    Running(Sandbox),
    Paused(Box<PausedSandbox>),
}

struct Branch {
    place: Place,
    model: Model,
    /// What was true at the last pause or checkpoint, from which it goes on after a crash.
    kept: Option<Model>,
}

impl Branch {
    fn running(sandbox: Sandbox, model: Model) -> Self {
        Self { place: Place::Running(sandbox), model, kept: None }
    }
}

/// Steele and Vigna's splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Op {
    Memory,
    MemoryZero,
    Write,
    Zero,
    Truncate,
    DropCaches,
    Pause,
    Resume,
    Fork,
    Checkpoint,
    Crash,
    Snapshot,
    Rollback,
    Compact,
    Collect,
    Kill,
}

const WEIGHTS: [(Op, u64); 16] = [
    (Op::Memory, 12),
    (Op::MemoryZero, 6),
    (Op::Write, 12),
    (Op::Zero, 5),
    (Op::Truncate, 5),
    (Op::DropCaches, 3),
    (Op::Pause, 14),
    (Op::Resume, 14),
    (Op::Fork, 6),
    (Op::Checkpoint, 6),
    (Op::Crash, 4),
    (Op::Snapshot, 4),
    (Op::Rollback, 4),
    (Op::Compact, 6),
    (Op::Collect, 3),
    (Op::Kill, 3),
];

struct Walk {
    host: Host,
    random: Random,
    branches: Vec<Branch>,
    /// Names to roll back to, and what was true when they were given.
    snapshots: Vec<(String, Model)>,
    log: Vec<String>,
    ran: BTreeSet<Op>,
    /// How the writes of the sandboxes that ran in the end were found.
    restored: Vec<Tracking>,
}

impl Walk {
    fn pick(&mut self) -> Op {
        let mut at = self.random.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        for (op, weight) in WEIGHTS {
            if at < weight {
                return op;
            }
            at -= weight;
        }
        unreachable!("the weights add up")
    }

    async fn step(&mut self, op: Op) {
        let at = self.random.index(self.branches.len());
        let running = matches!(self.branches[at].place, Place::Running(_));
        let done = match op {
            Op::Memory | Op::MemoryZero | Op::Write | Op::Zero | Op::Truncate | Op::DropCaches if running => {
                self.change(at, op).await
            }
            Op::Pause | Op::Fork | Op::Checkpoint | Op::Snapshot if running => self.save(at, op).await,
            Op::Crash if running && self.branches[at].kept.is_some() => self.crash(at).await,
            Op::Resume | Op::Compact if !running => self.paused(at, op).await,
            Op::Rollback if !self.snapshots.is_empty() && self.branches.len() < BRANCHES_MAX => {
                let (name, model) = self.snapshots[self.random.index(self.snapshots.len())].clone();
                let sandbox = Sandbox::create(&self.host, &name).await.unwrap();
                self.branches.push(Branch::running(sandbox, model));
                format!("rollback to {name} as branch {}", self.branches.len() - 1)
            }
            Op::Collect => {
                self.host.collect_garbage().await.unwrap();
                "collect".to_owned()
            }
            Op::Kill if self.branches.len() > 1 => {
                match self.branches.remove(at).place {
                    Place::Running(sandbox) => sandbox.kill().await.unwrap(),
                    Place::Paused(paused) => paused.delete().await.unwrap(),
                }
                format!("kill branch {at}")
            }
            _ => return,
        };
        println!("{done}");
        self.log.push(done);
        self.ran.insert(op);
        self.check().await;
    }

    async fn change(&mut self, at: usize, op: Op) -> String {
        let name = FILES[self.random.index(FILES.len())];
        let len = usize::try_from((self.random.below(64) + 1) * 256).unwrap()
            * if self.random.below(3) == 0 { 16 } else { 1 };
        let offset = self.random.below(FILE_BYTES_MAX);
        let (offset, seed) = (usize::try_from(offset).unwrap(), self.random.below(251));
        let Branch { place: Place::Running(sandbox), model, .. } = &mut self.branches[at] else { unreachable!() };
        let request = match op {
            Op::Memory => {
                model.memory[offset..offset + len].copy_from_slice(&fill(seed, len));
                format!("memory {offset} {len} {seed}")
            }
            Op::MemoryZero => {
                model.memory[offset..offset + len].fill(0);
                format!("memory-zero {offset} {len}")
            }
            Op::Write => {
                model.write(name, offset, &fill(seed, len));
                format!("write {name} {offset} {len} {seed}")
            }
            Op::Zero => {
                model.write(name, offset, &vec![0; len]);
                format!("zero {name} {offset} {len}")
            }
            Op::Truncate => {
                model.files.entry(name).or_default().resize(offset, 0);
                format!("truncate {name} {offset}")
            }
            _ => {
                run(sandbox, "sync; echo 3 | sudo tee /proc/sys/vm/drop_caches > /dev/null").await;
                return format!("branch {at}: drop caches");
            }
        };
        assert_eq!(ask(sandbox, &request).await, "ok");
        format!("branch {at}: {request}")
    }

    async fn save(&mut self, at: usize, op: Op) -> String {
        let Branch { place: Place::Running(sandbox), model, .. } = &self.branches[at] else { unreachable!() };
        let model = model.clone();
        match op {
            Op::Pause => {
                let paused = sandbox.pause().await.unwrap();
                let stored = paused.stored_bytes();
                self.branches[at].place = Place::Paused(Box::new(paused));
                self.branches[at].kept = Some(model);
                format!("branch {at}: pause, {stored} bytes")
            }
            Op::Fork => {
                let count = (BRANCHES_MAX - self.branches.len()).clamp(1, 2);
                let children = sandbox.fork(count).await.unwrap();
                for child in children.into_iter().map(Result::unwrap) {
                    if self.branches.len() < BRANCHES_MAX {
                        self.branches.push(Branch::running(child, model.clone()));
                    } else {
                        child.kill().await.unwrap();
                    }
                }
                format!("branch {at}: fork of {count}")
            }
            Op::Checkpoint => {
                sandbox.checkpoint().await.unwrap();
                self.branches[at].kept = Some(model);
                format!("branch {at}: checkpoint")
            }
            _ => {
                let name = format!("walk-{}-{}", sandbox.id(), self.log.len());
                sandbox.snapshot(&name).await.unwrap();
                self.snapshots.push((name.clone(), model));
                format!("branch {at}: snapshot {name}")
            }
        }
    }

    /// The VM ends as by a want of memory, and the sandbox goes on from what was kept.
    async fn crash(&mut self, at: usize) -> String {
        let Branch { place: Place::Running(sandbox), .. } = &self.branches[at] else { unreachable!() };
        let pid = sandbox.vmm_pid().await.unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        assert!(matches!(sandbox.wait().await, Exit::VmEnded { .. }));
        let id = sandbox.id().clone();
        let sandbox = self.host.paused(&id).await.unwrap().resume().await.unwrap();
        self.branches[at].place = Place::Running(sandbox);
        self.branches[at].model = self.branches[at].kept.clone().unwrap();
        format!("branch {at}: crash")
    }

    async fn paused(&mut self, at: usize, op: Op) -> String {
        let Branch { place: Place::Paused(paused), .. } = &self.branches[at] else { unreachable!() };
        if op == Op::Compact {
            let released = paused.compact().await.unwrap();
            return format!("branch {at}: compact, {released} bytes");
        }
        let sandbox = paused.resume().await.unwrap();
        self.branches[at].place = Place::Running(sandbox);
        format!("branch {at}: resume")
    }

    /// Every running branch is what its model says.
    async fn check(&self) {
        for (at, branch) in self.branches.iter().enumerate() {
            if let Place::Running(sandbox) = &branch.place {
                let sums = ask(sandbox, &format!("hash {}", FILES.join(" "))).await;
                let history = self.log.join("\n");
                assert_eq!(sums, branch.model.sums(), "branch {at} after:\n{history}");
            }
        }
    }
}

async fn ask(sandbox: &Sandbox, request: &str) -> String {
    run(sandbox, &format!("exec 3<>/dev/tcp/127.0.0.1/7000; echo '{request}' >&3; cat <&3")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_life_loses_no_byte() {
    vm_test_or_return!();
    let steps = std::env::var("WRENN_TEST_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(70);
    let walk = live(common::host().await, steps, Until::EachOperationWasDone).await;
    walk.end().await;
}

/// Shorter, since it is the tracking alone that differs. The longer one has the way that is this machine's best.
#[tokio::test(flavor = "multi_thread")]
async fn a_random_life_loses_no_byte_with_each_other_way_of_tracking() {
    vm_test_or_return!();
    for tracking in [Tracking::Sync, Tracking::Compare] {
        match Host::builder().tracking(tracking).open().await {
            Ok(host) => {
                println!("{tracking:?}");
                let walk = live(host, OTHER_STEPS, Until::Steps).await;
                assert!(walk.restored.iter().all(|found| *found == tracking), "{:?}", walk.restored);
                walk.end().await;
            }
            Err(error) => common::skip("a_random_life_loses_no_byte_with_each_other_way_of_tracking", &error),
        }
    }
}

/// Some seconds.
const OTHER_STEPS: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Steps,
    EachOperationWasDone,
}

/// So many random steps, and more where each operation has to be among them.
async fn live(host: Host, steps: usize, until: Until) -> Walk {
    let seed = std::env::var("WRENN_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("WRENN_TEST_SEED={seed} WRENN_TEST_STEPS={steps}");
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    sandbox.write_file("/home/user/server.py", SERVER).await.unwrap();
    run(&sandbox, "nohup python3 server.py > server.out 2>&1 & until grep -q ready server.out; do sleep 0.1; done")
        .await;

    let branches = vec![Branch::running(sandbox, Model::new())];
    let (random, ran) = (Random(seed), BTreeSet::new());
    let mut walk = Walk { host, random, branches, snapshots: Vec::new(), log: Vec::new(), ran, restored: Vec::new() };
    let mut tries = 0;
    while walk.log.len() < steps || until == Until::EachOperationWasDone && walk.ran.len() < WEIGHTS.len() {
        tries += 1;
        assert!(tries < steps * 40, "some operation never became possible: {:?}\n{}", walk.ran, walk.log.join("\n"));
        let op = walk.pick();
        walk.step(op).await;
    }
    // Those that are paused have to be right as well.
    for at in 0..walk.branches.len() {
        if let Place::Paused(paused) = &walk.branches[at].place {
            let sandbox = paused.resume().await.unwrap();
            walk.branches[at].place = Place::Running(sandbox);
        }
    }
    walk.check().await;
    for branch in &walk.branches {
        if let Place::Running(sandbox) = &branch.place {
            walk.restored.push(sandbox.restore_report().await.unwrap().tracking);
        }
    }
    walk
}

impl Walk {
    async fn end(self) {
        for branch in self.branches {
            if let Place::Running(sandbox) = branch.place {
                sandbox.kill().await.unwrap();
            }
        }
        for (name, _) in self.snapshots {
            self.host.remove_template(&name).await.unwrap();
        }
    }
}
