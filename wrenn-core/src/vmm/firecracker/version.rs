//! Firecracker's versions: which of them wrenn drives, and what is known to be wrong with one.

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};

/// The version of a binary of Firecracker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version([u32; 3]);

impl Version {
    /// From the first line of `--version`: `Firecracker v1.16.1`, or `Jailer v1.16.1`.
    pub(super) fn parse(text: &str, name: &str) -> Option<Self> {
        let version = text.lines().next()?.strip_prefix(name)?.strip_prefix(" v")?;
        let version = version.split(['-', ' ', '+']).next()?;
        let parts: Vec<u32> = version.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        parts.try_into().ok().map(Self)
    }

    /// Refuses a version that wrenn does not drive, with what is wrong with it.
    pub(super) fn check(self, program: &Path) -> Result<()> {
        if self >= OLDEST {
            return Ok(());
        }
        Err(Error::Host {
            problem: format!("{} is Firecracker {self}, in which {}", program.display(), self.flaws().join("; ")),
            remedy: format!("install {}.{} or later, from {RELEASES}", OLDEST.0[0], OLDEST.0[1]),
            source: None,
        })
    }

    /// What is known to be wrong with it, of what wrenn uses or a guest can reach, with the version that mends it.
    pub(super) fn flaws(self) -> Vec<String> {
        let known = FLAWS.iter().filter(|(mended_in, _)| self < *mended_in);
        known.map(|(mended_in, flaw)| format!("{flaw} (mended in {mended_in})")).collect()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// Where Firecracker's releases are.
pub(super) const RELEASES: &str = "https://github.com/firecracker-microvm/firecracker/releases";

const OLDEST: Version = Version([1, 16, 0]);

/// From Firecracker's CHANGELOG.md (#5705, #5764, #5959), and the advisory of CVE-2026-5747.
const FLAWS: [(Version, &str); 4] = [
    (Version([1, 15, 0]), "snapshots of what a guest of over 3 GiB wrote are damaged"),
    (Version([1, 15, 1]), "a guest can write outside of its memory by way of virtio over PCI, CVE-2026-5747"),
    (Version([1, 16, 0]), "a guest's serial console can stand still after a restore"),
    (Version([1, 16, 1]), "the jailer refuses control groups whose path has a link in it"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Version> {
        Version::parse(text, "Firecracker")
    }

    #[test]
    fn versions_are_read_and_rubbish_is_not() {
        assert_eq!(of("Firecracker v1.16.1\n\nSupported…"), Some(Version([1, 16, 1])));
        assert_eq!(of("Firecracker v1.17.0-dev"), Some(Version([1, 17, 0])));
        assert_eq!(Version::parse("Jailer v1.16.1\n", "Jailer"), Some(Version([1, 16, 1])));
        for rubbish in ["", "Firecracker", "QEMU emulator version 7.2", "Firecracker v1", "Firecracker vx.y.z"] {
            assert_eq!(of(rubbish), None, "{rubbish}");
        }
    }

    #[test]
    fn a_version_is_told_its_own_flaws_and_no_others() {
        let told = |version| Version(version).flaws().join(" ");
        assert!(told([1, 14, 9]).contains("3 GiB") && told([1, 14, 9]).contains("CVE-2026-5747"));
        assert!(!told([1, 15, 0]).contains("3 GiB") && told([1, 15, 0]).contains("CVE-2026-5747"));
        assert!(!told([1, 15, 1]).contains("CVE") && told([1, 15, 1]).contains("serial console"));
        assert!(told([1, 16, 0]).starts_with("the jailer") && told([1, 16, 0]).contains("mended in 1.16.1"));
        assert_eq!(told([1, 16, 1]), "");
        assert!(Version([1, 16, 0]).check(Path::new("x")).is_ok());
        let old = Version([1, 15, 0]).check(Path::new("/usr/bin/firecracker")).unwrap_err().to_string();
        assert!(old.contains("is Firecracker 1.15.0") && old.contains("CVE-2026-5747"), "{old}");
        assert!(old.contains("1.16 or later") && old.contains(RELEASES), "{old}");
    }
}
