//! What Debian's archive has that is newer than an image's packages and kernel.

use std::collections::BTreeMap;

use crate::image::error::ImageError;
use crate::image::installed::Image;
use crate::image::kernel::Kernel;
use crate::image::kernel_package::{Apt, is_package_name, newest_kernel};
use crate::image::store::blocking;
use crate::image::tools;

/// What Debian has now for an image, from [`Image::plan_packages`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackagePlan {
    /// The kernel that a refresh would bring; `None` where the one that is here is the newest, or where none is here.
    pub kernel: Option<PackageChange>,
    /// The packages of a base of Debian's that a refresh would bring in another version, by name; none of an OCI image.
    pub packages: Vec<PackageChange>,
}

/// A package of which there is another version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct PackageChange {
    /// The package's name, as the archive has it.
    pub name: String,
    /// What is here: a version, or for a kernel the file name of its package.
    pub current: String,
    /// The candidate: the version that the archive would give now.
    pub candidate: String,
}

impl Image {
    /// Asks Debian's archive which versions it has of the kernel, and of the packages of a base that is made of them. Some
    /// 10 MB of lists are downloaded to a temporary directory, and nothing is changed. What a package would depend on that the
    /// base does not have yet is not told.
    ///
    /// ```no_run
    /// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use wrenn_core::image::Image;
    ///
    /// for change in Image::open(host.data_dir(), "base")?.plan_packages().await?.packages {
    ///     println!("{} {} would be {}", change.name, change.current, change.candidate);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ImageError::Kernel`] where Debian has no kernel for the image's suite, [`ImageError::Io`] where a file cannot be read or
    /// written, and those of a program that is missing or fails, such as without a network.
    ///
    /// # Cancel-Safety
    ///
    /// Nothing is left.
    pub async fn plan_packages(&self) -> Result<PackagePlan, ImageError> {
        tools::require(&["apt-get", "apt-cache", tools::KEYRING])?;
        let (here, suite) = (self.data_dir.clone(), self.manifest.suite.clone());
        let open = move || {
            let scratch = tempfile::tempdir().map_err(ImageError::io("make a directory in", &std::env::temp_dir()))?;
            Ok((Kernel::open(&here, &suite)?, scratch))
        };
        let (kernel, scratch) = blocking(&self.data_dir, open).await?;
        let apt = Apt::prepare(&self.manifest.suite, scratch.path()).await?;
        apt.tool("apt-get").arg("update").run(|_| {}).await?;
        let newest = newest_kernel(&apt, &self.manifest.suite).await?;
        // The packages of an OCI image are its maker's.
        let of_base = self.packages().filter(|_| self.reference().is_none());
        let current: BTreeMap<String, String> = of_base.map(|it| (it.name.clone(), it.version.clone())).collect();
        let asked = [&newest].into_iter().chain(current.keys()).filter(|name| is_package_name(name)).cloned();
        let said = apt.tool("apt-cache").args(["show", "--no-all-versions"]).args(asked).output().await?;
        let candidates = candidates(&said);
        let kernel = kernel.and_then(|kernel| kernel_change(&newest, kernel.package(), &candidates));
        Ok(PackagePlan { kernel, packages: changes(&current, &candidates) })
    }
}

/// The versions of packages, in what `apt-cache show` says.
fn candidates(said: &str) -> BTreeMap<String, String> {
    let field = |stanza: &str, name: &str| {
        let value = |line: &str| line.strip_prefix(name).map(|value| value.trim().to_owned());
        stanza.lines().find_map(value)
    };
    let stanzas = said.split("\n\n");
    stanzas.filter_map(|stanza| Some((field(stanza, "Package:")?, field(stanza, "Version:")?))).collect()
}

/// Packages of which the archive gives another version. Those that it does not have stay as they are.
fn changes(current: &BTreeMap<String, String>, candidates: &BTreeMap<String, String>) -> Vec<PackageChange> {
    let change = |(name, current): (&String, &String)| {
        let candidate = candidates.get(name).filter(|candidate| *candidate != current)?.clone();
        Some(PackageChange { name: name.clone(), current: current.clone(), candidate })
    };
    current.iter().filter_map(change).collect()
}

/// The kernel's change, where its package would have another file name. `apt-get` writes a version's `:` as `%3a` there.
fn kernel_change(name: &str, package: &str, candidates: &BTreeMap<String, String>) -> Option<PackageChange> {
    let candidate = candidates.get(name)?.clone();
    let file = format!("{name}_{}_", candidate.replace(':', "%3a"));
    let change = || PackageChange { name: name.to_owned(), current: package.to_owned(), candidate };
    (!package.starts_with(&file)).then(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Package: libc6\nStatus: x\nVersion: 2.36-9+deb12u10\nDescription: words\n Version: none\n\n\
                        Package: linux-image-6.1.0-57-cloud-amd64\nVersion: 6.1.192-2\n\nPackage: broken\n\n";

    #[test]
    fn what_is_not_the_candidate_is_told_and_what_the_archive_lacks_is_not() {
        let candidates = candidates(SAID);
        assert_eq!(candidates.len(), 2);
        let current = [("libc6", "2.36-9+deb12u7"), ("own", "1")].map(|(name, version)| (name.into(), version.into()));
        let told = changes(&current.into(), &candidates);
        let of_libc = PackageChange {
            name: "libc6".to_owned(),
            current: "2.36-9+deb12u7".to_owned(),
            candidate: "2.36-9+deb12u10".to_owned(),
        };
        assert_eq!(told, [of_libc]);
        assert_eq!(changes(&candidates, &candidates), []);
    }

    #[test]
    fn a_kernel_is_another_one_by_its_name_or_by_its_version() {
        let name = "linux-image-6.1.0-57-cloud-amd64";
        let of = |package: &str, version: &str| {
            kernel_change(name, package, &BTreeMap::from([(name.to_owned(), version.to_owned())]))
        };
        assert_eq!(of(&format!("{name}_6.1.192-2_amd64.deb"), "6.1.192-2"), None);
        assert_eq!(of(&format!("{name}_1%3a6.1.192-2_amd64.deb"), "1:6.1.192-2"), None);
        assert!(of(&format!("{name}_6.1.192-1_amd64.deb"), "6.1.192-2").is_some());
        let older = of("linux-image-6.1.0-9-cloud-amd64_6.1.192-2_amd64.deb", "6.1.192-2").unwrap();
        assert_eq!((&*older.name, &*older.candidate), (name, "6.1.192-2"));
    }
}
