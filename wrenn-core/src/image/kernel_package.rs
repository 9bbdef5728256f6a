//! The kernel's package, fetched from Debian's archive by `apt-get` and unpacked without being installed.
//!
//! `apt-get` works in directories of its own here: it reads and changes nothing of the host's packages, and needs no rights.
//! It checks what it fetches against the archive's signed index.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::image::error::ImageError;
use crate::image::modules::{Module, ModuleTree};
use crate::image::store::blocking;
use crate::image::tools::{self, Tool};

/// A kernel package, unpacked.
#[derive(Debug)]
pub(super) struct KernelPackage {
    /// The package's file name, with its version.
    pub(super) file_name: String,
    pub(super) release: String,
    pub(super) vmlinuz: PathBuf,
    modules: PathBuf,
}

impl KernelPackage {
    /// Fetches the newest kernel of a suite, and unpacks it in `scratch`, an empty directory.
    pub(super) async fn fetch(suite: &str, scratch: &Path) -> Result<Self, ImageError> {
        tools::require(&["apt-get", "apt-cache", "dpkg-deb", tools::KEYRING])?;
        let apt = Apt::prepare(suite, scratch).await?;
        apt.tool("apt-get").arg("update").run(|_| {}).await?;
        let name = newest_kernel(&apt, suite).await?;
        apt.tool("apt-get").args(["download", &name]).run(|_| {}).await?;
        let here = scratch.to_owned();
        let package = blocking(scratch, move || only(&here, "kernel package", is_kernel_package)).await?;
        Self::unpack(&package, &scratch.join("tree")).await
    }

    async fn unpack(package: &Path, tree: &Path) -> Result<Self, ImageError> {
        Tool::new("dpkg-deb").arg("--extract").arg(package).arg(tree).run(|_| {}).await?;
        // Since Debian 13 packages ship their files under /usr.
        let modules = [tree.join("usr/lib/modules"), tree.join("lib/modules")];
        let modules = modules.iter().find(|path| path.is_dir());
        let modules = modules.ok_or_else(|| ImageError::Kernel("it has no modules".to_owned()))?;
        let modules = only(modules, "kernel release", |_| true)?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file_name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { file_name, vmlinuz: tree.join(format!("boot/vmlinuz-{release}")), release, modules })
    }

    /// The modules that a guest needs, in load order. Blocks.
    pub(super) fn modules(&self) -> Result<Vec<Module>, ImageError> {
        ModuleTree::read(&self.modules)?.wanted()
    }
}

/// The package of the newest kernel, of the lists that were fetched before.
pub(super) async fn newest_kernel(apt: &Apt<'_>, suite: &str) -> Result<String, ImageError> {
    let said = apt.tool("apt-cache").args(["show", "--no-all-versions", META_PACKAGE]).output().await?;
    let name = depends_on(&said).ok_or_else(|| {
        ImageError::Kernel(format!("Debian {suite} has no package {META_PACKAGE} that leads to a kernel"))
    })?;
    Ok(name.to_owned())
}

/// `apt-get` in a directory of its own.
#[derive(Debug)]
pub(super) struct Apt<'a> {
    directory: &'a Path,
}

impl<'a> Apt<'a> {
    pub(super) async fn prepare(suite: &str, directory: &'a Path) -> Result<Self, ImageError> {
        let (here, sources) = (directory.to_owned(), sources(suite));
        let prepare = move || {
            for part in ["state/lists/partial", "cache/archives/partial"] {
                let path = here.join(part);
                fs::create_dir_all(&path).map_err(ImageError::io("create", &path))?;
            }
            for (name, content) in [("sources.list", sources.as_str()), ("status", "")] {
                let path = here.join(name);
                fs::write(&path, content).map_err(ImageError::io("write", &path))?;
            }
            Ok(())
        };
        blocking(directory, prepare).await?;
        Ok(Self { directory })
    }

    pub(super) fn tool(&self, program: &'static str) -> Tool {
        let places = [
            ("Dir::State", "state"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::sourcelist", "sources.list"),
        ];
        let places = places.map(|(option, place)| {
            let mut text = OsString::from(format!("{option}="));
            text.push(self.directory.join(place));
            text
        });
        let options = places.into_iter().chain(OPTIONS.map(OsString::from));
        Tool::new(program).in_directory(self.directory).args(options.flat_map(|option| ["-o".into(), option]))
    }
}

/// Debian's own archive, with its updates where the suite is a release.
fn sources(suite: &str) -> String {
    let of_release = [
        ("http://deb.debian.org/debian", format!("{suite}-updates")),
        ("http://security.debian.org/debian-security", format!("{suite}-security")),
    ];
    let of_release = of_release.into_iter().filter(|_| !WITHOUT_UPDATES.contains(&suite));
    let all = [("http://deb.debian.org/debian", suite.to_owned())].into_iter().chain(of_release);
    all.map(|(archive, suite)| format!("deb [arch=amd64 signed-by={}] {archive} {suite} main\n", tools::KEYRING))
        .collect()
}

/// The kernel that the meta package depends on, in what `apt-cache show` says.
fn depends_on(said: &str) -> Option<&str> {
    let depends = said.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let names = depends.split(',').filter_map(|one| one.split_whitespace().next());
    names.into_iter().find(|name| {
        let release =
            name.strip_prefix("linux-image-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        release && is_package_name(name)
    })
}

/// Whether a text can be a package's name, and is no option of a program.
pub(super) fn is_package_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte))
}

/// `linux-image-6.1.0-1-cloud-amd64_…_amd64.deb`.
fn is_kernel_package(name: &str) -> bool {
    name.starts_with("linux-image-") && name.ends_with(".deb")
}

fn only(directory: &Path, what: &str, keep: fn(&str) -> bool) -> Result<PathBuf, ImageError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(ImageError::io("list", directory))? {
        let entry = entry.map_err(ImageError::io("list", directory))?;
        if keep(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => Err(ImageError::Kernel(format!("expected one {what}, found {}", found.len()))),
    }
}

/// It depends on the suite's newest kernel for clouds, which has the drivers of virtual machines and few others.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// Their updates are in themselves.
const WITHOUT_UPDATES: [&str; 4] = ["sid", "unstable", "rc-buggy", "experimental"];
/// The host's own list of sources is not read, nor its architecture. Root's `apt-get` would fetch as the user `_apt`, to whom
/// the directory is closed.
const OPTIONS: [&str; 6] = [
    "Dir::Etc::sourceparts=/dev/null",
    "APT::Architecture=amd64",
    "APT::Architectures::=amd64",
    "APT::Sandbox::User=root",
    "Acquire::Languages=none",
    "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_leads_to_its_kernel() {
        let said = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nDepends: linux-base, \
            linux-image-6.1.0-57-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(depends_on(said), Some("linux-image-6.1.0-57-cloud-amd64"));
        for without in ["", "Depends: linux-base\n", "Depends: linux-image-cloud\n", "Depends: linux-image-6;reboot\n"]
        {
            assert_eq!(depends_on(without), None, "{without}");
        }
    }

    #[test]
    fn a_release_has_its_updates_and_unstable_has_none() {
        assert_eq!(sources("bookworm").lines().count(), 3);
        assert!(sources("bookworm").contains("/debian-security bookworm-security main\n"));
        assert_eq!(sources("sid").lines().count(), 1);
    }
}
