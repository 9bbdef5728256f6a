//! The binary of QEMU: where it is, its version, and whether it has the machine that wrenn runs.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::packages::Packaged;
use crate::program::{self, from_variable, on_path};

/// A QEMU that wrenn can drive.
#[derive(Debug)]
pub(super) struct Binary {
    pub(super) path: PathBuf,
    /// Such as `7.2.22`.
    pub(super) version: String,
}

impl Binary {
    /// Finds it: as `named`, else by `WRENN_QEMU`, else on the `PATH`.
    ///
    /// # Errors
    /// [`Error::Host`] where there is none, or where it cannot run wrenn's machines.
    pub(super) async fn find(named: Option<PathBuf>) -> Result<Self> {
        let path = named.or_else(|| from_variable("WRENN_QEMU")).or_else(|| on_path(PROGRAM));
        let path = path.ok_or_else(|| missing(Path::new(PROGRAM), None))?;
        let (version, machines) = tokio::join!(program::version(&path), program::answer(&path, ["-machine", "help"]));
        let output = version.map_err(|error| missing(&path, Some(error)))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.strip_prefix("QEMU emulator version ").and_then(|rest| rest.split_whitespace().next());
        let version = version.ok_or_else(|| missing(&path, None))?;
        if parse(version).is_some_and(|version| version < OLDEST) {
            let problem = format!("{} is QEMU {version}", path.display());
            return Err(unfit(problem, format!("use QEMU {}.{} or later", OLDEST.0, OLDEST.1)));
        }
        let machines = machines.map_err(|error| missing(&path, Some(error)))?;
        let listed = String::from_utf8_lossy(&machines.stdout);
        if !listed.lines().any(|line| line.split_whitespace().next() == Some("microvm")) {
            let problem = format!("{} was built without the machine `microvm`", path.display());
            return Err(unfit(problem, "use a QEMU that has it, as Debian's, Ubuntu's and Fedora's do"));
        }
        Ok(Self { version: version.to_owned(), path })
    }
}

/// The first two numbers of a version. `None` for a version that has none: it may be newer than this rule.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '-', '(']).map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn unfit(problem: String, remedy: impl Into<String>) -> Error {
    let remedy = format!("{}, or name another binary in WRENN_QEMU", remedy.into());
    Error::Host { problem, remedy, source: None }
}

fn missing(program: &Path, source: Option<io::Error>) -> Error {
    Error::Host {
        problem: format!("{} is not here, or is not QEMU", program.display()),
        remedy: format!("{}, or name it in WRENN_QEMU", PACKAGED.how_to_install()),
        source: source.map(Into::into),
    }
}

pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGED: Packaged = Packaged { program: PROGRAM, debian: "qemu-system-x86", fedora: "qemu-system-x86" };
/// Ubuntu 22.04's. No older one was tried.
const OLDEST: (u32, u32) = (6, 2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for old in ["5.2.0", "6.1.1", "4.2"] {
            assert!(parse(old).is_some_and(|version| version < OLDEST), "{old}");
        }
        for known in ["6.2.0", "7.2.22", "8.2.2", "10.0.2", "10.1.50"] {
            assert!(parse(known).is_some_and(|version| version >= OLDEST), "{known}");
        }
        assert_eq!(parse("unstable"), None);
    }
}
