//! Programs of the host.

use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// The first file of that name on the `PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    find_in_path(&std::env::var_os("PATH")?, name)
}

/// The first file called `name` in the directories of `path`, which is written as the variable `PATH` is. An absolute
/// `name` is looked for where it says. It is how wrenn finds every program of the host. Reads no variable, and does not
/// look whether the file may be run.
///
/// ```
/// let sh = wrenn_core::find_in_path("/nonexistent:/bin".as_ref(), "sh");
/// assert_eq!(sh.as_deref(), Some("/bin/sh".as_ref()));
/// assert_eq!(wrenn_core::find_in_path("/nonexistent".as_ref(), "sh"), None);
/// ```
#[must_use]
pub fn find_in_path(path: &OsStr, name: &str) -> Option<PathBuf> {
    // Joining an absolute path yields that path.
    std::env::split_paths(path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// A program that is named by an environment variable.
pub(crate) fn from_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What a program says of its version. It is killed where it takes longer than [`VERSION_TIMEOUT`].
pub(crate) async fn version(program: &Path) -> io::Result<Output> {
    answer(program, ["--version"]).await
}

/// What a program answers to a question that it ends with. It is killed where it takes longer than
/// [`VERSION_TIMEOUT`].
pub(crate) async fn answer(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> io::Result<Output> {
    let asked = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
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

/// Whether an ELF file is a program that a loader has to complete with libraries.
pub(crate) fn is_dynamic(elf: &[u8]) -> Result<bool, object::Error> {
    let header = FileHeader64::<LittleEndian>::parse(elf)?;
    for segment in header.program_headers(LittleEndian, elf)? {
        if segment.interpreter(LittleEndian, elf)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

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
