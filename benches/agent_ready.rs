//! From the exec of an agent to its first answer: a second one in a booted guest, one on the host, and one that is the
//! first process of a namespace there. Beside each the start and end of a static program that does nothing.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, ensure};
use wrenn_core::Sandbox;

mod support;
use support::{
    Goal,
    agent::{self, Agent},
    guest, note, report_percentiles, skipped,
};

const ROUNDS: usize = 30;
/// What an agent may take in a guest whose processor is no emulation.
const LIMIT_MS: f64 = 20.0;

/// Of each round: how long an agent takes to its first answer, and the other program from start to end. The program of
/// PID 1 has no name in the guest any more, but root may start it again.
const IN_GUEST: &str = r"
import os, socket, sys, time
def agent():
    read, write = os.pipe()
    said = os.fdopen(read)
    began = time.perf_counter()
    words = ['agent', '--no-init', '--address', '127.0.0.1', '--port', '0']
    pid = os.posix_spawn('/proc/1/exe', words, {}, file_actions=[(os.POSIX_SPAWN_DUP2, write, 2)])
    os.close(write)
    port = int(said.readline().rsplit(':', 1)[1])
    stream = socket.create_connection(('127.0.0.1', port))
    stream.sendall(b'GET /health HTTP/1.1\r\nhost: guest\r\n\r\n')
    answer = stream.recv(4096)
    took = time.perf_counter() - began
    assert answer.startswith(b'HTTP/1.1 204'), answer
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    said.close(); stream.close()
    return took
def nothing():
    began = time.perf_counter()
    _, status = os.waitpid(os.posix_spawn(sys.argv[1], ['nothing'], {}), 0)
    assert status == 0, status
    return time.perf_counter() - began
for _ in range(int(sys.argv[2])):
    print(agent() * 1e3, nothing() * 1e3)
";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let nothing = directory.path().join("nothing");
    fs::write(&nothing, program_that_ends())?;
    fs::set_permissions(&nothing, fs::Permissions::from_mode(0o755))?;
    match agent::built() {
        Some(agent) => on_host(&agent, &nothing)?,
        None => skipped("agent_ready", &"the agent is not built: run `cargo xtask setup`"),
    }
    in_guest(&nothing).await
}

async fn in_guest(nothing: &Path) -> anyhow::Result<()> {
    let (_host, sandbox) = guest::sandbox().await?;
    let [agents, programs] = measure_in_guest(&sandbox, nothing).await?;
    report("agent_ready/guest", &agents, &programs);
    sandbox.kill().await?;
    Ok(())
}

async fn measure_in_guest(sandbox: &Sandbox, nothing: &Path) -> anyhow::Result<[Vec<f64>; 2]> {
    const PATH: &str = "/var/tmp/nothing";
    sandbox.files().write(PATH, fs::read(nothing)?).await?;
    ensure!(sandbox.command("chmod").args(["755", PATH]).output().await?.status.success());
    let rounds = (ROUNDS + 1).to_string();
    let output = sandbox.command("python3").args(["-c", IN_GUEST, PATH, &rounds]).user("root").output().await?;
    ensure!(output.status.success(), "{}", output.stderr_utf8());
    let mut samples = [Vec::new(), Vec::new()];
    for line in output.stdout_utf8().lines().skip(1) {
        let (agent, program) = line.split_once(' ').context("two numbers a line")?;
        samples[0].push(agent.parse()?);
        samples[1].push(program.parse()?);
    }
    Ok(samples)
}

fn on_host(agent: &Path, nothing: &Path) -> anyhow::Result<()> {
    for (name, before) in
        [("agent_ready", &[][..]), ("agent_ready/pid_1", &["unshare", "--fork", "--pid", "--mount-proc"])]
    {
        if !before.is_empty() && !nix::unistd::geteuid().is_root() {
            skipped(name, &"namespaces need root");
            continue;
        }
        let (mut agents, mut programs) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let (ready, ended) = (first_answer_ms(before, agent)?, end_ms(before, nothing)?);
            if round > 0 {
                agents.push(ready);
                programs.push(ended);
            }
        }
        report(name, &agents, &programs);
    }
    Ok(())
}

fn first_answer_ms(before: &[&str], agent: &Path) -> anyhow::Result<f64> {
    let mut command = command(before, agent);
    let began = Instant::now();
    let agent = Agent::start(&mut command)?;
    agent.connect()?.health()?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

fn end_ms(before: &[&str], program: &Path) -> anyhow::Result<f64> {
    let began = Instant::now();
    let status = command(before, program).status()?;
    let took = began.elapsed();
    ensure!(status.success(), "{status}");
    Ok(took.as_secs_f64() * 1e3)
}

/// `program`, started by `before` where that is anything.
fn command(before: &[&str], program: &Path) -> Command {
    let Some((starter, arguments)) = before.split_first() else { return Command::new(program) };
    let mut command = Command::new(starter);
    command.args(arguments);
    // It dies with what is killed here.
    command.args(["--kill-child", "--"]).arg(program);
    command
}

fn report(name: &str, values: &[f64], references: &[f64]) {
    report_percentiles(name, "ms", values, references, [Goal::None, Goal::None]);
    let verdict = if support::percentile(values, 50) < LIMIT_MS { "below" } else { "above" };
    note(&format!("{verdict} the {LIMIT_MS} ms that it may take on a processor that is no emulation"));
}

/// The least that Linux starts: an ELF file with one segment, whose code is `exit(0)`.
fn program_that_ends() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    // xor edi, edi; mov eax, 60; syscall
    let code = [0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    let size = HEADERS + 9;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // An executable for x86-64, version 1.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    let words = |file: &mut Vec<u8>, words: &[u64]| words.iter().for_each(|word| file.extend(word.to_le_bytes()));
    // Where it starts, where the segments are described, and no sections.
    words(&mut file, &[BASE + HEADERS, 64, 0]);
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // The segment: loaded, readable and executable.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    words(&mut file, &[0, BASE, BASE, size, size, 4096]);
    file.extend(code);
    file
}
