//! The distribution of this host, and how it installs a program.

use std::fs;

/// A program of the host, and the packages that have it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packaged {
    pub(crate) program: &'static str,
    /// The package on Debian, Ubuntu, and what descends from them.
    pub(crate) debian: &'static str,
    /// The package on Fedora.
    pub(crate) fedora: &'static str,
}

impl Packaged {
    /// How to install the program on this host, for the end of a sentence.
    pub(crate) fn how_to_install(&self) -> String {
        let read = |path| fs::read_to_string(path).ok();
        // The second is where the first one leads to, and is there also where /etc is another system's.
        let release = read("/etc/os-release").or_else(|| read("/usr/lib/os-release")).unwrap_or_default();
        self.how_to_install_on(&release)
    }

    fn how_to_install_on(&self, release: &str) -> String {
        match Family::of(release) {
            Some(Family::Debian) => format!("install it with `apt-get install {}`", self.debian),
            Some(Family::Fedora) => format!("install it with `dnf install {}`", self.fedora),
            None => format!("install the package of your distribution that has {}", self.program),
        }
    }
}

/// Distributions whose packages have the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Debian,
    Fedora,
}

impl Family {
    /// The family that an `os-release(5)` tells of: by the distribution's own name, else by those that it is like.
    ///
    /// Red Hat's own distributions are like Fedora, and are none here: their QEMU has another name, and no `microvm`.
    fn of(release: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        let (id, like) = (field("ID"), field("ID_LIKE"));
        match id.as_str() {
            "debian" | "ubuntu" => Some(Self::Debian),
            "fedora" => Some(Self::Fedora),
            _ => like.split_whitespace().any(|id| id == "debian" || id == "ubuntu").then_some(Self::Debian),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_distribution_is_told_its_own_command() {
        const QEMU: Packaged = Packaged { program: "qemu", debian: "qemu-debian", fedora: "qemu-fedora" };
        for (release, said) in [
            ("PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nID=debian\n", "`apt-get install qemu-debian`"),
            ("ID=ubuntu\nID_LIKE=debian\n", "`apt-get install qemu-debian`"),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "`apt-get install qemu-debian`"),
            ("ID=fedora\nVERSION_ID=41\n", "`dnf install qemu-fedora`"),
            ("ID=\"rhel\"\nID_LIKE=\"fedora\"\n", "of your distribution that has qemu"),
            ("ID=arch\n", "of your distribution that has qemu"),
            ("", "of your distribution that has qemu"),
        ] {
            let text = QEMU.how_to_install_on(release);
            assert!(text.ends_with(said), "{release}: {text}");
        }
    }
}
