//! Debian's and Ubuntu's packages: what installing some would do, told before it is done.

use std::fmt;
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// What installing some packages would change on this machine.
///
/// ```
/// use wrenn_server::packages::Change;
///
/// let change = Change::parse(
///     "Inst mmdebstrap (1.3.5-7 Debian:12 [all])\nRemv qemu-utils [1:10.0]\n",
///     "'http://deb.debian.org/m.deb' m.deb 2000000 SHA256:00\n",
/// );
/// assert_eq!(change.removed, ["qemu-utils"]);
/// assert_eq!(change.to_string(), "1 package to install (2.0 MB to download): mmdebstrap; REMOVES qemu-utils");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Packages that are installed or replaced by another version.
    pub installed: Vec<String>,
    /// Packages that are removed.
    pub removed: Vec<String>,
    /// How much is downloaded, in bytes.
    pub download_bytes: u64,
}

impl Change {
    /// Asks apt; that changes nothing, and any user may do it.
    ///
    /// # Errors
    /// Where apt is not there, or cannot install the packages: the text has what apt says.
    pub fn of(packages: &[&str]) -> anyhow::Result<Self> {
        let simulation = asked(&[&["--simulate"], packages].concat())?;
        let downloads = asked(&[&["--print-uris", "--yes", "--quiet=2"], packages].concat())?;
        Ok(Self::parse(&simulation, &downloads))
    }

    /// Reads what `apt-get install --simulate` and `apt-get install --print-uris` print. A line that is of neither form
    /// is passed over.
    #[must_use]
    pub fn parse(simulation: &str, downloads: &str) -> Self {
        let named = |verb: &str| -> Vec<String> {
            let lines = simulation.lines().filter_map(|line| line.strip_prefix(verb)?.strip_prefix(' '));
            lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
        };
        // 'URI' FILE BYTES SUM
        let bytes = downloads.lines().filter(|line| line.starts_with('\''));
        let bytes = bytes.filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
        Self { installed: named("Inst"), removed: named("Remv"), download_bytes: bytes.sum() }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.installed.len();
        let plural = if count == 1 { "" } else { "s" };
        // As apt counts: a MB is 1,000,000 bytes.
        let (whole, tenth) = (self.download_bytes / 1_000_000, self.download_bytes / 100_000 % 10);
        write!(
            f,
            "{count} package{plural} to install ({whole}.{tenth} MB to download): {}",
            self.installed.join(", ")
        )?;
        if self.removed.is_empty() { Ok(()) } else { write!(f, "; REMOVES {}", self.removed.join(", ")) }
    }
}

/// The command that installs them, for a person to type.
#[must_use]
pub fn command(packages: &[&str]) -> String {
    format!("apt-get install --yes --no-install-recommends {}", packages.join(" "))
}

/// Fetches apt's lists, so that it knows the packages. Needs root. Its output goes where this program's goes.
///
/// # Errors
/// Where apt is not there, or fails.
pub fn update() -> anyhow::Result<()> {
    run(&["update", "--quiet=2"])
}

/// Installs them. Needs root. Its output goes where this program's goes.
///
/// # Errors
/// Where apt is not there, or fails.
pub fn install(packages: &[&str]) -> anyhow::Result<()> {
    run(&[&["install", "--yes", "--quiet=2", "--no-install-recommends"], packages].concat())
}

fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let status = apt().args(arguments).status().context(NO_APT)?;
    ensure!(status.success(), "`apt-get {}` failed ({status})", arguments.join(" "));
    Ok(())
}

fn asked(arguments: &[&str]) -> anyhow::Result<String> {
    let output = apt().args(["install", "--no-install-recommends"]).args(arguments).output().context(NO_APT)?;
    if !output.status.success() {
        bail!("apt-get cannot install them: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command
}

const NO_APT: &str = "apt-get could not be started: wrenn sets up Debian and Ubuntu by itself; elsewhere install what \
    `wrenn-server doctor` names";

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_apt_prints_is_understood() {
        let simulation = "NOTE: This is only a simulation!\nReading package lists...\n\
            The following packages will be REMOVED:\n  qemu-utils\n\
            Remv qemu-utils [1:7.2+dfsg-7+deb12u14]\n\
            Inst qemu-system-x86 [1:7.2] (1:10.0.2 Debian Backports:bookworm-backports [amd64])\n\
            Inst mmdebstrap (1.3.5-7 Debian:12.11/oldstable [all])\n\
            Conf mmdebstrap (1.3.5-7 Debian:12.11/oldstable [all])\n";
        let downloads = "'http://deb.debian.org/a.deb' a_1%3a10.deb 12345678 SHA256:0a\n\
            'http://deb.debian.org/b.deb' b.deb 100 SHA256:0b\nReading 5 7 9\n";
        let change = Change::parse(simulation, downloads);
        assert_eq!(change.installed, ["qemu-system-x86", "mmdebstrap"]);
        assert_eq!(change.removed, ["qemu-utils"]);
        assert_eq!(change.download_bytes, 12_345_778);
        assert_eq!(
            change.to_string(),
            "2 packages to install (12.3 MB to download): qemu-system-x86, mmdebstrap; REMOVES qemu-utils"
        );
    }

    #[test]
    fn a_package_that_does_not_exist_is_told_in_apts_words() {
        if Command::new("apt-get").arg("--version").output().is_err() {
            let skipped = "skipped: a_package_that_does_not_exist_is_told_in_apts_words: there is no apt-get";
            return writeln!(std::io::stderr(), "{skipped}").unwrap();
        }
        let error = Change::of(&["no-such-package-of-wrenns"]).unwrap_err();
        assert!(error.to_string().contains("no-such-package-of-wrenns"), "{error}");
    }
}
