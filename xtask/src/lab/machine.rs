//! The lab's virtual machine: QEMU, with a processor that has AMD's virtualization.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use super::drive::{Drive, path_of};
use super::host_kernel::HostKernel;
use super::monitor::Monitor;
use super::patience::Patience;
use super::progress::{Event, Progress, Watch};

/// A machine to run once.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a HostKernel,
    /// The file system under the lab's root.
    pub(super) base: &'a Path,
    pub(super) drive: &'a Drive,
    pub(super) patience: Patience,
    /// How long it may run where nothing else does.
    pub(super) run_max: Duration,
}

/// How a machine has ended.
#[derive(Debug)]
pub(super) enum End {
    /// Its script has ended, with a status.
    Status(i32),
    /// It crashed, or was ended because it stood still: why in a line, and what was seen of it.
    Died { why: String, seen: String },
}

impl Machine<'_> {
    /// Runs the machine to its end. `line` gets each line of output, and `event` what the machine tells of itself.
    ///
    /// # Errors
    ///
    /// When QEMU cannot be started or its output cannot be read. A machine that dies is an [`End`].
    ///
    /// # Cancel-Safety
    ///
    /// Dropping the future kills QEMU, and so does the end of this process.
    pub(super) async fn run(&self, line: &mut dyn FnMut(&str), event: &mut dyn FnMut(Event)) -> anyhow::Result<End> {
        let mut progress = Progress::new()?;
        let monitor = Monitor::new()?;
        let mut qemu = self.spawn(progress.file(), &monitor)?;
        let mut console = Tail::default();
        let mut status = None;
        let mut take = |event_taken: Event| {
            if let Event::Status(told) = event_taken {
                status = Some(told);
            }
            event(event_taken);
        };
        let ended = tokio::select! {
            ended = follow(&mut qemu, line, &mut console) => Ok(ended?),
            overdue = overdue(self, &mut progress, &mut take) => Err(overdue?),
        };
        match ended {
            Ok(qemu) => {
                progress.read()?.into_iter().for_each(&mut take);
                let why = || format!("it ended without a result (QEMU: {qemu})");
                Ok(status.map_or_else(|| End::Died { why: why(), seen: console.to_string() }, End::Status))
            }
            Err(why) => {
                let registers = monitor.registers().await;
                qemu.kill().await?;
                Ok(End::Died { why, seen: format!("{registers}  the end of its console:\n{console}") })
            }
        }
    }

    fn spawn(&self, progress: &File, monitor: &Monitor) -> anyhow::Result<Child> {
        // QEMU has to end even if this process is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]).args(self.arguments(progress, monitor));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.spawn().context("QEMU could not be started")
    }

    fn arguments(&self, progress: &File, monitor: &Monitor) -> Vec<String> {
        let path = |path: &Path| path.display().to_string().replace(',', ",,");
        let mut arguments: Vec<String> = MACHINE.iter().map(|&argument| argument.to_owned()).collect();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("-kernel", self.kernel.vmlinuz.display().to_string());
        add("-initrd", self.kernel.initramfs.display().to_string());
        add("-append", KERNEL_ARGUMENTS.to_owned());
        add("-chardev", format!("file,id=progress,path={}", path_of(progress).display()));
        add("-chardev", format!("socket,id=monitor,server=on,wait=off,path={}", path(&monitor.socket())));
        add("-mon", "chardev=monitor,mode=control".to_owned());
        add("-drive", format!("if=none,id=base,format=raw,readonly=on,file={}", path(self.base)));
        add("-drive", format!("if=none,id=drive,format=raw,cache=unsafe,file={}", path(&self.drive.path())));
        for device in DEVICES {
            add("-device", device.to_owned());
        }
        arguments
    }
}

/// Reads what the machine tells of itself, and comes to an end when the machine has to.
async fn overdue(
    machine: &Machine<'_>,
    progress: &mut Progress,
    event: &mut dyn FnMut(Event),
) -> std::io::Result<String> {
    let mut watch = Watch::new(machine.patience, machine.run_max, Instant::now());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for told in progress.read()? {
            watch.take(told, Instant::now());
            event(told);
        }
        if let Some(why) = watch.overdue(Instant::now()) {
            return Ok(why);
        }
    }
}

/// Reads both of QEMU's streams to their ends, and waits for it.
async fn follow(qemu: &mut Child, line: &mut dyn FnMut(&str), console: &mut Tail) -> anyhow::Result<ExitStatus> {
    let (output, errors) = (qemu.stdout.take(), qemu.stderr.take());
    let mut to_console = |line: &str| console.push(line);
    tokio::try_join!(each_line(output, line), each_line(errors, &mut to_console))?;
    Ok(qemu.wait().await?)
}

async fn each_line(stream: Option<impl AsyncRead + Unpin>, line: &mut dyn FnMut(&str)) -> std::io::Result<()> {
    let Some(stream) = stream else { return Ok(()) };
    let mut lines = BufReader::new(stream).split(b'\n');
    while let Some(bytes) = lines.next_segment().await? {
        line(String::from_utf8_lossy(&bytes).trim_end_matches('\r'));
    }
    Ok(())
}

/// The last lines of the machine's console, which QEMU's own errors are on too.
#[derive(Debug, Default)]
struct Tail(VecDeque<String>);

impl Tail {
    fn push(&mut self, line: &str) {
        if self.0.len() == CONSOLE_LINES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }
}

impl std::fmt::Display for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(500);
const CONSOLE_LINES_MAX: usize = 40;

/// The output goes to QEMU's standard output and the console to its standard error. Both are character devices of the
/// kind `file`: the kind `stdio` counts as closed when there is no input, and a closed port blocks its writer.
///
/// The processor has no virtual interrupt flag and no virtual `VMLOAD`, with which the lab held for a shorter time, and no
/// five-level page tables, which make each walk longer.
const MACHINE: &[&str] = &[
    "-nodefaults",
    "-no-user-config",
    "-no-reboot",
    "-display",
    "none",
    "-machine",
    "q35",
    "-accel",
    "tcg,thread=multi",
    "-cpu",
    "max,la57=off,vgif=off,v-vmsave-vmload=off",
    "-smp",
    "2",
    "-m",
    "4096",
    "-chardev",
    "file,id=output,path=/proc/self/fd/1",
    "-chardev",
    "file,id=console,path=/proc/self/fd/2",
    "-serial",
    "chardev:console",
];

const DEVICES: [&str; 6] = [
    "virtio-serial-pci",
    "virtserialport,chardev=output,name=output",
    "virtserialport,chardev=progress,name=progress",
    "virtio-blk-pci,drive=base",
    "virtio-blk-pci,drive=drive",
    "virtio-rng-pci",
];

const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic random.trust_cpu=on mitigations=off net.ifnames=0";
