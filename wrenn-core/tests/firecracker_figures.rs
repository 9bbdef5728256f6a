//! What a lazy restore costs under the real Firecracker, beside the same restore with Firecracker's own example handler
//! (`WRENN_UFFD_HANDLER`, src/firecracker/examples/uffd/on_demand_handler.rs). Skipped by name without either.
//!
//! ```sh
//! WRENN_FIRECRACKER=… WRENN_UFFD_HANDLER=… cargo xtask lab -- --nocapture figures
//! ```
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use wrenn_core::{Driver, Host, PausedSandbox, Sandbox};
use wrenn_net::Slot;
use wrenn_snapshot::{Generation, LocalStore, Space};

#[tokio::test(flavor = "multi_thread")]
async fn figures_of_a_restore_beside_the_example_handlers() {
    let test = "figures_of_a_restore_beside_the_example_handlers";
    if !common::can_run(test) {
        return;
    }
    let handler = std::env::var_os("WRENN_UFFD_HANDLER").filter(|path| !path.is_empty()).map(PathBuf::from);
    let choice = Host::doctor().await.choice;
    let (Some(handler), true) = (handler, choice.is_ok_and(|choice| choice.driver == Driver::Firecracker)) else {
        println!("skipped: {test}: WRENN_UFFD_HANDLER names no handler, or Firecracker does not run here");
        return;
    };
    let host = Host::builder().driver(Driver::Firecracker).open().await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    sandbox.exec("python3 -c 'print(1)'").await.unwrap();
    let paused = sandbox.pause().await.unwrap();
    let reference = Reference::of(&host, &paused, handler);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(restore(&paused).await);
        theirs.push(reference.restore().await);
    }
    let median = |of: &dyn Fn(&Timing) -> Duration, timings: &[Timing]| {
        let mut all: Vec<_> = timings.iter().map(of).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    let row = |name: &str, of: &dyn Fn(&Timing) -> Duration| {
        let (ours, theirs) = (median(of, &ours), median(of, &theirs));
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        println!("figure: {name}: {ours:?}, with the example handler {theirs:?}, ratio {ratio:.2}");
        ratio
    };
    let loaded = row("load to the API's answer", &|timing| timing.load);
    row("start to the agent's first answer", &|timing| timing.answer);
    assert!(loaded < 3.0, "loading took {loaded:.2} times as long as with the example handler");
}

struct Timing {
    load: Duration,
    answer: Duration,
}

/// As a sandbox is resumed. Its first answer is to the call that makes it somebody new.
async fn restore(paused: &PausedSandbox) -> Timing {
    let began = Instant::now();
    let sandbox = paused.resume().await.unwrap();
    let answer = began.elapsed();
    let began = Instant::now();
    sandbox.exec("true").await.unwrap();
    let exec = began.elapsed();
    let report = sandbox.restore_report().await.unwrap();
    let memory = report.memory;
    println!(
        "figure: wrenn: answered in {answer:?}, first exec {exec:?}; {} faults, p50 {:.0} us, p99 {:.0} us; {} KiB by \
         faults, {} KiB read ahead",
        memory.faults,
        memory.latency_p50_us,
        memory.latency_p99_us,
        memory.fault_bytes >> 10,
        memory.prefetch_bytes >> 10,
    );
    let began = Instant::now();
    let paused = sandbox.pause().await.unwrap();
    println!("figure: wrenn: paused in {:?}, stored {} KiB", began.elapsed(), paused.stored_bytes() >> 10);
    Timing { load: report.phases.load, answer }
}

/// The same snapshot as files, for a Firecracker that this test drives by hand.
struct Reference {
    directory: tempfile::TempDir,
    handler: PathBuf,
    firecracker: PathBuf,
}

impl Reference {
    fn of(host: &Host, paused: &PausedSandbox, handler: PathBuf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let record = host.data_dir().join(format!("sandboxes/{}.json", paused.id()));
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
        let store = LocalStore::open(host.data_dir().join("generations")).unwrap();
        let generation: Generation = store.load(record["generation"].as_str().unwrap().parse().unwrap()).unwrap();
        let path = |name: &str| directory.path().join(name);
        for (space, name) in [(Space::Memory, "mem"), (Space::Drive, "drive")] {
            let file = std::fs::File::create(path(name)).unwrap();
            generation.reader(space).unwrap().copy_into(&file, &path(name)).unwrap();
        }
        std::fs::write(path("state"), generation.blob("state").unwrap()).unwrap();
        std::os::unix::fs::symlink(host.data_dir().join("images/base/base.ext4"), path("base")).unwrap();
        let firecracker = std::env::var_os("WRENN_FIRECRACKER").map_or_else(|| "firecracker".into(), PathBuf::from);
        Self { directory, handler, firecracker }
    }

    async fn restore(&self) -> Timing {
        let (slot, tap, _gate) = Slot::create().unwrap();
        tap.leave_to(0).unwrap();
        for socket in ["api.sock", "memory.sock"] {
            let _ = std::fs::remove_file(self.directory.path().join(socket));
        }
        let _handler = Running(self.command(&self.handler).args(["memory.sock", "mem"]).spawn().unwrap());
        // Its one connection is Firecracker's.
        let socket = self.directory.path().join("memory.sock");
        wait(|| socket.exists().then_some(()));
        let began = Instant::now();
        let mut command = self.command(&self.firecracker);
        command.args(["--api-sock", "api.sock"]);
        let _firecracker = std::thread::scope(|scope| {
            let start = scope.spawn(|| {
                setns(slot.namespace(), CloneFlags::CLONE_NEWNET).unwrap();
                Running(command.spawn().unwrap())
            });
            start.join().unwrap()
        });
        let mut api = wait(|| UnixStream::connect(self.directory.path().join("api.sock")).ok());
        let body = serde_json::json!({
            "snapshot_path": "state",
            "mem_backend": { "backend_type": "Uffd", "backend_path": "memory.sock" },
            "track_dirty_pages": true,
            "resume_vm": true,
        });
        let loading = Instant::now();
        put(&mut api, "/snapshot/load", &body.to_string());
        let load = loading.elapsed();
        // The guest's processes are frozen, and its agent answers.
        while !matches!(tokio::time::timeout(Duration::from_secs(5), health(&slot)).await, Ok(Ok(()))) {}
        Timing { load, answer: began.elapsed() }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.directory.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

fn wait<T>(ready: impl Fn() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < until, "it did not start");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn put(api: &mut UnixStream, path: &str, body: &str) {
    let length = body.len();
    write!(
        api,
        "PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = [0; 1024];
    let read = api.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

/// An error is a guest that is not there yet.
async fn health(slot: &Slot) -> std::io::Result<()> {
    let mut stream = slot.connect(49983).await?;
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    let mut answer = [0; 16];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer).await?;
    assert!(answer.starts_with(b"HTTP/1.1 204"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// A process that ends with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const ROUNDS: usize = 5;
