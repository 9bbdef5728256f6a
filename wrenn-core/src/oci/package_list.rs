//! What an image has of packages, read from its merged layers.
//!
//! A database is an image's word, so how much of it is taken has limits. What is not taken is told, and fails no pull.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use crate::erofs::{InodeId, Kind};
use crate::oci::cache::Layer;
use crate::oci::distribution::Distribution;
use crate::oci::entry::Place;
use crate::oci::merge::{LayerContent, Merge};
use crate::oci::package::{Package, PackageKind};
use crate::oci::package_database::{Malformed, packages};
use crate::oci::rpm;

/// The packages of an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PackageList {
    /// Sorted.
    pub(crate) packages: Vec<Package>,
    pub(crate) distribution: Option<Distribution>,
    /// What is there and was not read: each a sentence.
    pub(crate) unread: Vec<String>,
}

/// Reads the databases of an image.
pub(super) fn read(merge: &Merge, layers: &[Arc<Layer>]) -> io::Result<PackageList> {
    let mut reader =
        Reader { merge, layers, bytes_left: BYTES_MAX, text_left: TEXT_BYTES_MAX, list: PackageList::default() };
    let mut release = None;
    for path in RELEASES {
        release = release.or(reader.text_of(path)?);
    }
    reader.list.distribution = release.and_then(|text| Distribution::parse(&text));
    let mut seen = Vec::new();
    for (path, kind) in DATABASES {
        // One directory may be a link to another.
        let Some(id) = merge.find(path).filter(|id| !seen.contains(id)) else { continue };
        seen.push(id);
        reader.database(path, id, kind)?;
    }
    reader.directory(STATUS_DIRECTORY)?;
    for path in RPM {
        let Some(id) = merge.find(path).filter(|id| !seen.contains(id)) else { continue };
        seen.push(id);
        reader.rpm(path, id)?;
    }
    for path in RPM_UNREAD {
        if merge.find(path).is_some() {
            reader.unread(format!("the RPM database /{path} is not read"));
        }
    }
    reader.list.packages.sort();
    Ok(reader.list)
}

struct Reader<'a> {
    merge: &'a Merge,
    layers: &'a [Arc<Layer>],
    bytes_left: u64,
    text_left: usize,
    list: PackageList,
}

impl Reader<'_> {
    fn database(&mut self, path: &str, id: InodeId, kind: PackageKind) -> io::Result<()> {
        let Some(text) = self.text(path, id)? else { return Ok(()) };
        let mut malformed = 0_usize;
        for package in packages(&text, kind) {
            let Ok(package) = package else {
                malformed += 1;
                continue;
            };
            if !self.take(path, package) {
                return Ok(());
            }
        }
        self.tell_malformed(path, malformed);
        Ok(())
    }

    fn rpm(&mut self, path: &str, id: InodeId) -> io::Result<()> {
        if let Some(log) = self.merge.find(&format!("{path}-wal"))
            && matches!(self.merge.tree().inode(log).kind, Kind::File { size: 1.., .. })
        {
            // The newest packages would be missing, and removed ones be there.
            self.unread(format!("the RPM database /{path} is not read: it was not closed, and has a log beside it"));
            return Ok(());
        }
        let Some(bytes) = self.bytes(path, id)? else { return Ok(()) };
        let mut malformed = 0_usize;
        let read = rpm::packages(&bytes, |package| match package {
            Err(Malformed) => {
                malformed += 1;
                true
            }
            Ok(package) => self.take(path, package),
        });
        self.tell_malformed(path, malformed);
        if let Err(damaged) = read {
            self.unread(format!("the RPM database /{path} is not read whole: {damaged}"));
        }
        Ok(())
    }

    /// Adds a package; `false`, and a word of it, where there are too many.
    fn take(&mut self, path: &str, package: Package) -> bool {
        let bytes = [&package.architecture, &package.license].into_iter().flatten().map(String::len).sum::<usize>();
        let left = self.text_left.checked_sub(package.name.len() + package.version.len() + bytes);
        let Some(left) = left.filter(|_| self.list.packages.len() < PACKAGES_MAX) else {
            self.unread(format!("/{path} names more packages than are taken"));
            return false;
        };
        self.text_left = left;
        self.list.packages.push(package);
        true
    }

    fn tell_malformed(&mut self, path: &str, count: usize) {
        if count > 0 {
            self.unread(format!("/{path} has {count} entries that name no package and version"));
        }
    }

    /// A file for each package, as distroless images have them.
    fn directory(&mut self, path: &str) -> io::Result<()> {
        let Some(directory) = self.merge.find(path) else { return Ok(()) };
        let is_package = |name: &[u8]| !name.ends_with(b".md5sums");
        let files = self.merge.tree().entries(directory).filter(|(name, _)| is_package(name));
        let mut files: Vec<_> = files.map(|(name, id)| (String::from_utf8_lossy(name).into_owned(), id)).collect();
        if files.len() > PACKAGES_MAX {
            self.unread(format!("/{path} names more packages than are taken"));
            files.truncate(PACKAGES_MAX);
        }
        for (name, id) in files {
            self.database(&format!("{path}/{name}"), id, PackageKind::Deb)?;
        }
        Ok(())
    }

    fn unread(&mut self, what: String) {
        if self.list.unread.len() < UNREAD_MAX {
            self.list.unread.push(what);
        }
    }

    fn text_of(&mut self, path: &str) -> io::Result<Option<String>> {
        self.merge.find(path).map_or(Ok(None), |id| self.text(path, id))
    }

    fn text(&mut self, path: &str, id: InodeId) -> io::Result<Option<String>> {
        Ok(self.bytes(path, id)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// `None` of what is no file, or is too much.
    fn bytes(&mut self, path: &str, id: InodeId) -> io::Result<Option<Vec<u8>>> {
        let Kind::File { size, content } = &self.merge.tree().inode(id).kind else { return Ok(None) };
        let Some(left) = self.bytes_left.checked_sub(*size) else {
            self.unread(format!("/{path} is not read: it has {size} bytes"));
            return Ok(None);
        };
        self.bytes_left = left;
        let mut bytes = vec![0; usize::try_from(*size).map_err(io::Error::other)?];
        self.content(content, &mut bytes)?;
        Ok(Some(bytes))
    }

    fn content(&self, content: &LayerContent, bytes: &mut [u8]) -> io::Result<()> {
        let layer = usize::try_from(content.layer).ok().and_then(|number| self.layers.get(number));
        let layer = layer.ok_or_else(|| io::Error::other("a file of no layer"))?;
        match content.stored.place {
            Place::Data(offset) => layer.data.read_exact_at(bytes, offset),
            Place::Small(offset) => layer.small.read_exact_at(bytes, offset),
        }
    }
}

const RELEASES: [&str; 2] = ["etc/os-release", "usr/lib/os-release"];
const DATABASES: [(&str, PackageKind); 3] = [
    ("var/lib/dpkg/status", PackageKind::Deb),
    ("lib/apk/db/installed", PackageKind::Apk),
    ("usr/lib/apk/db/installed", PackageKind::Apk),
];
const STATUS_DIRECTORY: &str = "var/lib/dpkg/status.d";
/// Where RPM has its database, and where Fedora has moved it.
const RPM: [&str; 2] = ["var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite"];
/// Of other generations of RPM.
const RPM_UNREAD: [&str; 3] = ["var/lib/rpm/Packages.db", "var/lib/rpm/Packages", "usr/lib/sysimage/rpm/Packages.db"];
/// Of all databases together. A Debian with 3,000 packages has some 4 MiB, a Fedora with 500 some 40, since RPM's has the names
/// of all files.
const BYTES_MAX: u64 = 128 << 20;
const PACKAGES_MAX: usize = 10_000;
const UNREAD_MAX: usize = 20;
/// Of what is kept: the image's manifest has a limit too.
const TEXT_BYTES_MAX: usize = 1 << 20;
