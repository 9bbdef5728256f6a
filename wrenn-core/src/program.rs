//! Programs of the host.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// The first file of that name on the `PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A program that is named by an environment variable.
pub(crate) fn from_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What a program says of its version. It is killed where it takes longer than [`VERSION_TIMEOUT`].
pub(crate) async fn version(program: &Path) -> io::Result<Output> {
    let asked = Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {VERSION_TIMEOUT:?}"));
    timeout(VERSION_TIMEOUT, asked).await.map_err(late)?
}

/// Runs a program that has nothing to read and nothing to say. `None` where it was still running after `within`, and
/// was killed.
pub(crate) async fn status_within(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    within: Duration,
) -> io::Result<Option<ExitStatus>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    timeout(within, child.wait()).await.ok().transpose()
}

const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_hangs_is_given_up_on() {
        let sh = Path::new("/bin/sh");
        assert_eq!(status_within(sh, ["-c", "sleep 60"], Duration::from_millis(50)).await.unwrap(), None);
        let ended = status_within(sh, ["-c", "exit 3"], Duration::from_secs(20)).await.unwrap();
        assert_eq!(ended.and_then(|status| status.code()), Some(3));
    }
}
