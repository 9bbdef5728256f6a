//! The lab's virtual machine: QEMU, with a processor that has AMD's virtualization.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::drive::{Drive, path_of};
use super::host_kernel::HostKernel;

/// A machine to run once.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a HostKernel,
    /// The file system under the lab's root.
    pub(super) base: &'a Path,
    pub(super) drive: &'a Drive,
}

impl Machine<'_> {
    /// Runs the machine to its end and returns the status that it hands back; `line` gets each line of output.
    ///
    /// # Errors
    ///
    /// With the end of the machine's console when it ends without a status or does not end in time.
    ///
    /// # Cancel-Safety
    ///
    /// Dropping the future kills QEMU, and so does the end of this process.
    pub(super) async fn run(&self, line: &mut dyn FnMut(&str)) -> anyhow::Result<i32> {
        let status = tempfile::tempfile()?;
        let mut qemu = self.spawn(&status)?;
        let mut console = Tail::default();
        match timeout(RUN_MAX, follow(&mut qemu, line, &mut console)).await {
            Ok(qemu) => result(status, qemu?, &console),
            Err(_elapsed) => {
                qemu.kill().await?;
                bail!("the lab did not end within {} minutes\n{console}", RUN_MAX.as_secs() / 60)
            }
        }
    }

    fn spawn(&self, status: &File) -> anyhow::Result<Child> {
        // QEMU has to end even if this process is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]).args(self.arguments(status));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.spawn().context("QEMU could not be started")
    }

    fn arguments(&self, status: &File) -> Vec<String> {
        let path = |path: &Path| path.display().to_string().replace(',', ",,");
        let mut arguments: Vec<String> = MACHINE.iter().map(|&argument| argument.to_owned()).collect();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("-kernel", self.kernel.vmlinuz.display().to_string());
        add("-initrd", self.kernel.initramfs.display().to_string());
        add("-append", KERNEL_ARGUMENTS.to_owned());
        add("-chardev", format!("file,id=status,path={}", path_of(status).display()));
        add("-drive", format!("if=none,id=base,format=raw,readonly=on,file={}", path(self.base)));
        add("-drive", format!("if=none,id=drive,format=raw,cache=unsafe,file={}", path(&self.drive.path())));
        for device in DEVICES {
            add("-device", device.to_owned());
        }
        arguments
    }
}

/// The status that the machine has written to `file`.
fn result(mut file: File, qemu: ExitStatus, console: &Tail) -> anyhow::Result<i32> {
    let mut status = String::new();
    file.read_to_string(&mut status)?;
    let status = status.trim().parse();
    status.with_context(|| format!("the lab ended without a result (QEMU: {qemu})\n{console}"))
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

const RUN_MAX: Duration = Duration::from_secs(30 * 60);
const CONSOLE_LINES_MAX: usize = 40;

/// The output goes to QEMU's standard output and the console to its standard error. Both are character devices of the
/// kind `file`: the kind `stdio` counts as closed when there is no input, and a closed port blocks its writer.
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
    "max",
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
    "virtserialport,chardev=status,name=status",
    "virtio-blk-pci,drive=base",
    "virtio-blk-pci,drive=drive",
    "virtio-rng-pci",
];

const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet loglevel=4 panic=-1 random.trust_cpu=on mitigations=off net.ifnames=0";
