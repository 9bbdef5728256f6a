//! The text of a package database: stanzas with an empty line between, each of lines `FIELD:VALUE`.
//!
//! | of | name | version | architecture | licence | state |
//! |---|---|---|---|---|---|
//! | `dpkg` | `Package` | `Version` | `Architecture` | | `Status`, which `status.d` of distroless images leaves out |
//! | `apk` | `P` | `V` | `A` | `L` | |

use crate::oci::package::{Package, PackageKind};

/// A stanza without a name and a version that can be taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The installed packages of a database.
pub(super) fn packages(text: &str, kind: PackageKind) -> impl Iterator<Item = Result<Package, Malformed>> {
    text.split("\n\n").filter_map(move |stanza| package(stanza, kind))
}

fn package(stanza: &str, kind: PackageKind) -> Option<Result<Package, Malformed>> {
    if stanza.trim().is_empty() || field(stanza, "Status").is_some_and(is_removed) {
        return None;
    }
    let take = |name, bytes_max| field(stanza, name).filter(|value| is_text(value, bytes_max)).map(str::to_owned);
    let ([name, version, architecture], license) = match kind {
        PackageKind::Deb => (["Package", "Version", "Architecture"], None),
        PackageKind::Apk => (["P", "V", "A"], take("L", LICENSE_BYTES_MAX)),
        // Its database is no text.
        PackageKind::Rpm => return Some(Err(Malformed)),
    };
    let [name, version, architecture] = [name, version, architecture].map(|name| take(name, NAME_BYTES_MAX));
    let (Some(name), Some(version)) = (name, version) else { return Some(Err(Malformed)) };
    Some(Ok(Package { name, version, kind, architecture, license }))
}

/// The first value of a field. Lines that begin with a space go on with a value before, and are passed over.
fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    stanza.lines().find_map(value).map(str::trim)
}

/// Whether `dpkg` knows a package that is not there: its files are gone, or were never there.
fn is_removed(status: &str) -> bool {
    matches!(status.split_whitespace().nth(2), Some("not-installed" | "config-files"))
}

pub(super) fn is_text(value: &str, bytes_max: usize) -> bool {
    !value.is_empty() && value.len() <= bytes_max && !value.contains(char::is_control)
}

pub(super) const NAME_BYTES_MAX: usize = 256;
pub(super) const LICENSE_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, kind: PackageKind) -> Vec<String> {
        let line = |package: Package| {
            let [architecture, license] = [package.architecture, package.license].map(Option::unwrap_or_default);
            format!("{} {} {architecture} {license}", package.name, package.version).trim_end().to_owned()
        };
        packages(text, kind).map(|package| package.map_or_else(|_| "?".to_owned(), line)).collect()
    }

    #[test]
    fn what_dpkg_has_installed_is_read() {
        let text = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2.36-9+deb12u7\n\
                    Description: words\n .\n Package: not-this\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\n\
                    Package: held\nStatus: hold ok installed\nVersion: 2\n";
        assert_eq!(all(text, PackageKind::Deb), ["libc6 1:2.36-9+deb12u7 amd64", "held 2"]);
        // `status.d` of a distroless image.
        assert_eq!(
            all("Package: tzdata\nVersion: 2024a-0\nArchitecture: all\n", PackageKind::Deb),
            ["tzdata 2024a-0 all"]
        );
    }

    #[test]
    fn what_apk_has_installed_is_read() {
        let text = "C:Q1abc=\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\nF:lib\nR:ld-musl-x86_64.so.1\n\n\
                    P:busybox\nV:1.36.1-r29\nA:x86_64\nL:GPL-2.0-only\n\n";
        assert_eq!(all(text, PackageKind::Apk), ["musl 1.2.5-r0 x86_64 MIT", "busybox 1.36.1-r29 x86_64 GPL-2.0-only"]);
    }

    #[test]
    fn a_stanza_that_names_no_package_is_told_and_the_others_are_read() {
        let long = "x".repeat(257);
        let text =
            format!("P:a\n\nV:1\n\nP:{long}\nV:1\n\nP:b\u{1}c\nV:1\n\nP:\nV:1\n\nP:d\nV:1\nL:{}\n", long.repeat(4));
        assert_eq!(all(&text, PackageKind::Apk), ["?", "?", "?", "?", "?", "d 1"]);
        assert_eq!(all("", PackageKind::Deb), [""; 0]);
    }
}
