//! Programs of the guest that run when it is frozen and before it is thawed.
//!
//! ```text
//!  /etc/wrenn/hooks/before-freeze.d/*   before the guest's processes are stopped: close what cannot survive
//!  /etc/wrenn/hooks/before-thaw.d/*     when clock, randomness and identity are the guest's own, and nobody runs yet
//! ```
//!
//! Every executable file of the directory is run as root, in the order of the names, with `WRENN_EVENT` set to `frozen`,
//! `created`, `resumed`, `forked` or `continued`. Each has [`HOOK_MAX`], all together [`ALL_MAX`]; one that takes longer is
//! killed. What they print, and how they fail, goes to the console. A hook that fails stops nothing: a guest that cannot be
//! paused, or not be resumed, is worse. Files whose name begins with a dot or ends with `~` are left out.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, PipeWriter},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use nix::unistd::{Gid, Uid};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    time::{Instant, timeout_at},
};

use super::{
    console::complain,
    process::{Outputs, Table},
    sys::{self, Program, SignalNumber},
};

/// The guest's hooks, and what runs them.
#[derive(Debug)]
pub(super) struct Hooks {
    /// `None`: there are none.
    pub(super) directory: Option<PathBuf>,
    pub(super) table: Arc<Table>,
}

/// When hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    BeforeFreeze,
    BeforeThaw,
}

impl Hooks {
    /// Runs every hook of that moment, one after the other.
    pub(super) async fn run(&self, moment: Moment, event: &str) {
        let Some(directory) = &self.directory else { return };
        let all_end = Instant::now() + ALL_MAX;
        for hook in hooks(&directory.join(moment.directory())) {
            let end = all_end.min(Instant::now() + HOOK_MAX);
            if Instant::now() >= all_end {
                complain(&format!("hook {}: it is left out: there is no time for it", hook.display()));
                continue;
            }
            match self.run_one(&hook, event, end).await {
                Ok((status, output)) if status.success() && output.is_empty() => {}
                Ok((status, output)) => report(&hook, status, &output),
                Err(error) => complain(&format!("hook {}: {error}", hook.display())),
            }
        }
    }

    async fn run_one(&self, hook: &Path, event: &str, end: Instant) -> io::Result<(ExitStatus, Vec<u8>)> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "it took too long, and was killed");
        let (reader, writer) = io::pipe()?;
        let begun = timeout_at(end, self.table.spawn(program(hook, event, writer)?)).await.map_err(|_| late())?;
        let begun = begun.map_err(io::Error::other)?;
        let (pid, mut exit) = (begun.pid, begun.take());
        let mut output = Vec::new();
        let mut reading = pipe::Receiver::from_owned_fd(reader.into())?;
        let status = timeout_at(end, async {
            // What the hook leaves running may hold the pipe for ever: its own end is what counts.
            tokio::select! {
                () = collect(&mut reading, &mut output) => (&mut exit).await,
                status = &mut exit => status,
            }
        })
        .await;
        let _ = reading.try_read_buf(&mut output);
        self.table.read_on(Outputs::pipe(reading.into_nonblocking_fd()?));
        let Ok(status) = status else {
            // It can only have ended in the meantime.
            let _ = sys::signal_group(pid, SignalNumber::KILL);
            return Err(late());
        };
        Ok((status.unwrap_or_else(|_| ExitStatus::from_raw(0)), output))
    }
}

/// A hook with root's own environment, not in the group that is frozen. The writing end closes here when it is dropped.
fn program(hook: &Path, event: &str, writer: PipeWriter) -> io::Result<Program> {
    let path = CString::new(hook.as_os_str().as_bytes())?;
    let envs = [format!("PATH={PATH}"), "HOME=/root".to_owned(), format!("WRENN_EVENT={event}")];
    Ok(Program {
        args: vec![path.clone()],
        paths: vec![path],
        envs: envs.into_iter().map(CString::new).collect::<Result<_, _>>()?,
        cwd: c"/".to_owned(),
        else_in_root: false,
        uid: Uid::from_raw(0),
        gid: Gid::from_raw(0),
        groups: nix::unistd::geteuid().is_root().then(|| vec![Gid::from_raw(0)]),
        control_group: None,
        streams: [File::open("/dev/null")?.into(), writer.try_clone()?.into(), writer.into()],
        at_terminal: false,
    })
}

impl Moment {
    fn directory(self) -> &'static str {
        match self {
            Self::BeforeFreeze => "before-freeze.d",
            Self::BeforeThaw => "before-thaw.d",
        }
    }
}

/// The hooks of a directory in their order.
fn hooks(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let is_hook = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let is_program = fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
        is_program && !name.starts_with('.') && !name.ends_with('~')
    };
    let mut hooks: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(is_hook).collect();
    hooks.sort();
    hooks
}

/// Reads to the end, and keeps the beginning.
async fn collect(pipe: &mut pipe::Receiver, output: &mut Vec<u8>) {
    let mut buffer = [0; 1024];
    while let Ok(length) = pipe.read(&mut buffer).await {
        if length == 0 {
            return;
        }
        let kept = length.min(OUTPUT_BYTES_MAX.saturating_sub(output.len()));
        output.extend_from_slice(&buffer[..kept]);
    }
}

fn report(hook: &Path, status: ExitStatus, output: &[u8]) {
    for line in String::from_utf8_lossy(&output[..output.len().min(OUTPUT_BYTES_MAX)]).lines() {
        complain(&format!("hook {}: {}", hook.display(), line.escape_debug()));
    }
    if !status.success() {
        complain(&format!("hook {}: {status}", hook.display()));
    }
}

/// The time of one hook.
const HOOK_MAX: Duration = Duration::from_secs(5);
/// The time of all hooks of a moment: less than what a host waits for the answer.
const ALL_MAX: Duration = Duration::from_secs(10);
/// What is kept of what a hook prints.
const OUTPUT_BYTES_MAX: usize = 4 << 10;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
