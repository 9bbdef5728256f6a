//! A package of an image.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A package that is installed in an image, as the database of its distribution has it.
///
/// ```no_run
/// # fn demo() -> Result<(), wrenn_core::image::ImageError> {
/// use wrenn_core::image::Image;
///
/// let image = Image::open(&wrenn_core::default_data_dir(), "python-3.12")?;
/// for package in image.packages() {
///     println!("{} {}", package.name, package.version);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
#[non_exhaustive]
pub struct Package {
    /// The package's name.
    pub name: String,
    /// The package's version.
    pub version: String,
    /// Whose package it is.
    pub kind: PackageKind,
    /// What it was built for, `amd64` or `all` for one.
    pub architecture: Option<String>,
    /// The licence that the database names. Debian's names none.
    pub license: Option<String>,
}

/// The system that a package belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PackageKind {
    /// `dpkg`, of Debian and what comes from it.
    Deb,
    /// `apk`, of Alpine.
    Apk,
    /// RPM, of Fedora and what is like it.
    Rpm,
}

impl fmt::Display for Package {
    /// The name and the version.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// A package as manifests have it. One of Debian's of which no more is known is the text `name version`, as an earlier wrenn
/// wrote it and reads it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Fields {
        name: String,
        version: String,
        kind: PackageKind,
        #[serde(skip_serializing_if = "Option::is_none")]
        architecture: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        license: Option<String>,
    },
}

impl From<Package> for Written {
    fn from(package: Package) -> Self {
        match package {
            Package { kind: PackageKind::Deb, architecture: None, license: None, .. } => {
                Self::Text(package.to_string())
            }
            Package { name, version, kind, architecture, license } => {
                Self::Fields { name, version, kind, architecture, license }
            }
        }
    }
}

impl From<Written> for Package {
    fn from(written: Written) -> Self {
        match written {
            Written::Text(text) => {
                let (name, version) = text.split_once(' ').unwrap_or((&text, ""));
                let (name, version) = (name.to_owned(), version.to_owned());
                Self { name, version, kind: PackageKind::Deb, architecture: None, license: None }
            }
            Written::Fields { name, version, kind, architecture, license } => {
                Self { name, version, kind, architecture, license }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_read_as_it_was_written_now_and_before() {
        let old: Package = serde_json::from_str(r#""bash 5.2.15-2+b2""#).unwrap();
        assert_eq!((&*old.name, &*old.version, old.kind), ("bash", "5.2.15-2+b2", PackageKind::Deb));
        assert_eq!(serde_json::to_string(&old).unwrap(), r#""bash 5.2.15-2+b2""#);
        let new = Package { kind: PackageKind::Apk, license: Some("MIT".to_owned()), ..old };
        let text = serde_json::to_string(&new).unwrap();
        assert_eq!(serde_json::from_str::<Package>(&text).unwrap(), new);
        assert!(!text.contains("architecture"), "{text}");
    }
}
