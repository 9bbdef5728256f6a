//! A minimal Debian in a directory, made by `mmdebstrap`.

use std::convert::Infallible;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::tools;
use crate::image::digest;
use crate::image::error::ImageError;
use crate::image::step::Step;
use crate::image::store::blocking;
use crate::image::tools::Tool;
use crate::oci::package::{Package, PackageKind};

/// What the base is made of.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) suite: String,
    /// Packages on top of [`PACKAGES`].
    pub(super) extra_packages: Vec<String>,
}

/// A bootstrapped tree.
#[derive(Debug)]
pub(super) struct Rootfs {
    pub(super) root: PathBuf,
    pub(super) packages: Vec<Package>,
}

impl Recipe {
    /// Changes with anything that goes into the base.
    pub(super) fn digest(&self) -> String {
        let packages = self.packages();
        let parts: Vec<&str> =
            [REVISION, &self.suite, &packages].into_iter().chain(HOOKS).chain(DPKG_OPTIONS).collect();
        let files = FILES.iter().map(|file| format!("{file:?}"));
        let text: Vec<String> = parts.into_iter().map(str::to_owned).chain(files).collect();
        digest::of_bytes(text.join("\n").as_bytes())
    }

    /// Makes the tree at `scratch/root`. `mmdebstrap` without a mirror takes Debian's own, with its security updates.
    pub(super) async fn bootstrap(
        &self,
        scratch: &Path,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Rootfs, ImageError> {
        tools::require(&["mmdebstrap", "apt-get", "chroot", tools::KEYRING])?;
        let root = scratch.join("root");
        let progress = Mutex::new(progress);
        let report = |step: &Step| {
            if let Ok(mut progress) = progress.lock() {
                progress(step);
            }
        };
        let install = Tool::as_root("mmdebstrap")
            .args(["--mode=root", "--variant=minbase", "--format=directory"])
            .args(["--architectures=amd64", "--components=main"])
            .arg(format!("--include={}", self.packages()))
            .args(DPKG_OPTIONS.map(|option| format!("--dpkgopt={option}")))
            .args(HOOKS.map(|hook| format!("--customize-hook={hook}")))
            .arg(&self.suite)
            .arg(&root)
            .run(|line| {
                if let Some(detail) = line.strip_prefix("I: ") {
                    report(&Step::Detail(detail.to_owned()));
                }
            });
        tokio::select! {
            installed = install => installed?,
            never = report_downloads(&root, &report) => match never {},
        }
        for file in FILES {
            file.write(&root)?;
        }
        let mut admin = std::ffi::OsString::from("--admindir=");
        admin.push(root.join("var/lib/dpkg"));
        let list = Tool::new("dpkg-query")
            .arg(admin)
            .args(["--show", "--showformat=${Package} ${Version}\n"])
            .output()
            .await?;
        Ok(Rootfs { root, packages: list.lines().filter_map(package).collect() })
    }

    fn packages(&self) -> String {
        let extra = self.extra_packages.iter().map(String::as_str);
        PACKAGES.into_iter().chain(extra).collect::<Vec<_>>().join(",")
    }
}

/// Of a line `name version`.
fn package(line: &str) -> Option<Package> {
    let (name, version) = line.split_once(' ')?;
    let (name, version) = (name.to_owned(), version.to_owned());
    Some(Package { name, version, kind: PackageKind::Deb, architecture: None, license: None })
}

/// Tells every few seconds how much has come, where that has grown. Never ends.
async fn report_downloads(root: &Path, report: &(dyn Fn(&Step) + Sync)) -> Infallible {
    let archives = root.join("var/cache/apt/archives");
    let places = [archives.join("partial"), archives];
    let mut told = 0;
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        let places = places.clone();
        let measured = blocking(root, move || Ok(places.iter().map(|place| bytes_in(place)).sum::<u64>())).await;
        // It is less again once the packages were installed and removed.
        if let Ok(bytes) = measured
            && bytes > told
        {
            report(&Step::Downloaded { bytes });
            told = bytes;
        }
    }
}

/// The sizes of the files in a directory, which may come and go meanwhile.
fn bytes_in(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file).map(|file| file.len()).sum()
}

const REPORT_EVERY: Duration = Duration::from_secs(3);

/// A file of ours in the tree.
#[derive(Debug)]
struct Planted {
    path: &'static str,
    mode: u32,
    content: &'static str,
}

impl Planted {
    fn write(&self, root: &Path) -> Result<(), ImageError> {
        let path = root.join(self.path);
        // The tree may have a link there, which would be followed out of it.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ImageError::io("replace", &path)(error));
            }
            _ => {}
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.mode)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(self.content.as_bytes())?;
                file.set_permissions(Permissions::from_mode(self.mode))
            })
            .map_err(ImageError::io("write", &path))
    }
}

/// Raise it when the code here makes another base of the same lists.
const REVISION: &str = "1";

const PACKAGES: [&str; 9] =
    ["bash", "ca-certificates", "coreutils", "curl", "git", "iproute2", "procps", "python3", "sudo"];

/// Documentation and translations are a third of a small Debian. Copyright files stay, as their licences ask.
const DPKG_OPTIONS: [&str; 8] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/lib/x86_64-linux-gnu/perl/*/CORE/*",
];

/// Shell, so fixed text: `$1` is the tree. Byte code is compiled here since a guest's processor may be an emulated one.
const HOOKS: [&str; 2] = [
    r#"chroot "$1" useradd --create-home --uid 1000 --user-group --shell /bin/bash user"#,
    r#"chroot "$1" sh -c 'python3 -m compileall -q /usr/lib/python3*'"#,
];

const FILES: &[Planted] = &[
    Planted { path: "etc/hostname", mode: 0o644, content: "wrenn\n" },
    Planted { path: "etc/hosts", mode: 0o644, content: "127.0.0.1 localhost wrenn\n::1 localhost\n" },
    // The agent fills it in: the host's own resolver, which mmdebstrap copies, means nothing in a guest.
    Planted { path: "etc/resolv.conf", mode: 0o644, content: "" },
    Planted { path: "etc/machine-id", mode: 0o444, content: "" },
    Planted { path: "etc/default/locale", mode: 0o644, content: "LANG=C.UTF-8\n" },
    Planted { path: "etc/sudoers.d/user", mode: 0o440, content: "user ALL=(ALL:ALL) NOPASSWD:ALL\n" },
];

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_planted_file_replaces_a_link_and_not_its_target() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let (host, link) = (root.path().join("host"), root.path().join("link"));
        fs::write(&host, "the host's")?;
        symlink(&host, &link)?;
        let planted = Planted { path: "link", mode: 0o440, content: "ours" };
        planted.write(root.path()).map_err(io::Error::other)?;
        assert_eq!(fs::read_to_string(&host)?, "the host's");
        assert_eq!(fs::read_to_string(&link)?, "ours");
        assert_eq!(fs::metadata(&link)?.permissions().mode() & 0o7777, 0o440);
        Ok(())
    }

    #[test]
    fn the_recipe_changes_with_what_it_is_made_of() {
        let recipe = |suite: &str, extra: &[&str]| {
            Recipe { suite: suite.to_owned(), extra_packages: extra.iter().map(|&name| name.to_owned()).collect() }
                .digest()
        };
        assert_eq!(recipe("bookworm", &[]), recipe("bookworm", &[]));
        assert_ne!(recipe("bookworm", &[]), recipe("trixie", &[]));
        assert_ne!(recipe("bookworm", &[]), recipe("bookworm", &["jq"]));
    }
}
