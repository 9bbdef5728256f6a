//! `cargo xtask setup`: a bare machine made ready, with a line for each thing that is done.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;
use wrenn_core::image::Image;
use wrenn_server::packages;
use wrenn_server::setup::Setup;

/// What `wrenn-server setup` does, and what the tests and the benches want besides. Packages that stand in the way are
/// removed without a question, since a gate has nobody to ask; a line before says which.
pub(crate) async fn run() -> anyhow::Result<()> {
    let more_packages = [missing_programs(&TEST_PROGRAMS), missing_for_building()].concat();
    let setup = Setup { image: Image::builder("base"), more_packages, may_remove: true };
    setup.run(&wrenn_core::default_data_dir(), |line| println!("setup: {line}")).await?;
    TEST_TOOLS.iter().try_for_each(|tool| tool.fetch())
}

/// A program that tests run, and that is not installed: its package would start a service, remove another, or be one more
/// package manager.
struct TestTool {
    /// The package that has it, and those that has to have.
    packages: &'static [&'static str],
    /// Where it is in the package.
    path: &'static str,
}

const TEST_TOOLS: [TestTool; 3] = [
    TestTool { packages: &["docker-registry"], path: "usr/bin/docker-registry" },
    TestTool { packages: &["busybox-static"], path: "bin/busybox" },
    TestTool { packages: &RPM, path: "usr/bin/rpmbuild" },
];
const RPM: [&str; 13] = [
    "rpm",
    "rpm-common",
    "librpm9",
    "librpmbuild9",
    "librpmio9",
    "librpmsign9",
    "libdw1",
    "libelf1",
    "libfsverity0",
    "liblua5.3-0",
    "libmagic1",
    "libmagic-mgc",
    "libpopt0",
];

impl TestTool {
    /// Unpacks it below cargo's target directory, where the tests look for it.
    fn fetch(&self) -> anyhow::Result<()> {
        let tools = crate::shell::target().join("test-tools");
        if tools.join(self.path).is_file() {
            return Ok(());
        }
        println!("setup: fetching {}, which only the tests run", self.packages.join(", "));
        let place = tempfile::tempdir()?;
        // As root apt would fetch as another user, to whom the directory is closed.
        let download = ["-q", "-o", "APT::Sandbox::User=root", "download"];
        crate::shell::run(Command::new("apt-get").args(download).args(self.packages).current_dir(place.path()))?;
        std::fs::create_dir_all(&tools)?;
        for package in std::fs::read_dir(place.path())? {
            crate::shell::run(Command::new("dpkg-deb").arg("--extract").arg(package?.path()).arg(&tools))?;
        }
        if !tools.join(self.path).is_file() {
            bail!("{} is not in the packages {}: name those that have it", self.path, self.packages.join(", "));
        }
        Ok(())
    }
}

/// Installs what the whole workspace with every feature needs to be built, where that is missing.
pub(crate) fn for_building() -> anyhow::Result<()> {
    let missing = missing_for_building();
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::Uid::effective().is_root() {
        let command = packages::command(&missing);
        bail!(
            "packages are missing; install them as root and run this again:\n    sudo apt-get update && sudo {command}"
        );
    }
    println!("setup: installing {}", missing.join(", "));
    packages::update()?;
    packages::install(&missing)
}

/// What the tests alone want, and the package that has it. `patchelf` is for the lab with QEMU.
const TEST_PROGRAMS: [(&str, &str); 3] = [("curl", "curl"), ("mkfs.xfs", "xfsprogs"), ("patchelf", "patchelf")];

/// The build of the `userfaultfd` crate, to which wrenn's calls are compared, has `bindgen` read a header of Linux. No user
/// of wrenn's crates builds it, unless by the feature of that name.
fn missing_for_building() -> Vec<&'static str> {
    let mut packages = missing_programs(&[("clang", "clang")]);
    let is_named = std::env::var_os("LIBCLANG_PATH").is_some_and(|path| !path.is_empty());
    if !is_named && !library_directories().iter().any(|directory| has_libclang(directory)) {
        packages.push("libclang-dev");
    }
    packages
}

fn missing_programs(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    programs.iter().filter(|(program, _)| !is_here(&path, program)).map(|&(_, package)| package).collect()
}

/// Those of `bindgen`'s that Debian and Ubuntu put the library into.
fn library_directories() -> Vec<PathBuf> {
    let llvm = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let of_version =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"llvm-"));
    let of_versions = llvm.filter(of_version).map(|path| path.join("lib"));
    of_versions.chain(["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"].map(PathBuf::from)).collect()
}

fn has_libclang(directory: &Path) -> bool {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    // The library of that name with `-cpp` is another one.
    names.filter_map(|name| name.into_string().ok()).any(|name| {
        (name.starts_with("libclang.so") || name.starts_with("libclang-"))
            && name.contains(".so")
            && !name.contains("cpp")
    })
}

fn is_here(path: &OsStr, program: &str) -> bool {
    // The other two are on no user's path but root's.
    [path, "/usr/sbin:/sbin".as_ref()].iter().any(|path| wrenn_core::find_in_path(path, program).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_roots_path_alone_is_found_by_a_user() {
        let of_user = "/usr/local/bin".as_ref();
        assert!(is_here(of_user, "ldconfig") && !is_here(of_user, "no-such-program"));
    }

    #[test]
    fn the_library_is_found_by_the_names_that_packages_give_it() {
        for (name, is_it) in [
            ("libclang.so", true),
            ("libclang-14.so.1", true),
            ("libclang.so.1", true),
            ("libclang-cpp.so.14", false),
            ("libclangAST.a", false),
            ("libclang-14.a", false),
        ] {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join(name), "").unwrap();
            assert_eq!(has_libclang(directory.path()), is_it, "{name}");
        }
        assert!(!has_libclang(Path::new("/nonexistent")));
    }
}
