//! Where an image comes from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use oci_client::Reference;

use crate::oci::error::OciError;

/// Where an image comes from. Parsed from the texts that [`OciError::Source`] lists; a path in them has no colon, and
/// the variants take any path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A registry's, for one `python:3.12`, which is `docker.io/library/python:3.12`.
    Registry(Reference),
    /// A directory of the OCI image layout. Without a tag it has one image.
    Layout { path: PathBuf, tag: Option<String> },
    /// Such a directory as a tar archive.
    OciArchive { path: PathBuf, tag: Option<String> },
    /// What `docker save` writes.
    DockerArchive { path: PathBuf, name: Option<String> },
    /// A root file system as a tar archive, which may be compressed with gzip, bzip2, xz or zstd.
    Tar(PathBuf),
    /// A root file system in a directory.
    Directory(PathBuf),
}

impl FromStr for Source {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        let refused = |reason: &str| OciError::Source { text: text.to_owned(), reason: reason.to_owned() };
        let Some((kind, rest)) = text.split_once(':') else { return registry(text) };
        let path = || if rest.is_empty() { Err(refused("the path is empty")) } else { Ok(PathBuf::from(rest)) };
        let tagged = || {
            let (path, tag) = rest.split_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)));
            match (path, tag) {
                ("", _) => Err(refused("the path is empty")),
                (_, Some("")) => Err(refused("the tag after the path is empty")),
                (path, tag) => Ok((PathBuf::from(path), tag.map(str::to_owned))),
            }
        };
        match kind {
            "oci" => tagged().map(|(path, tag)| Self::Layout { path, tag }),
            "oci-archive" => tagged().map(|(path, tag)| Self::OciArchive { path, tag }),
            "docker-archive" => tagged().map(|(path, name)| Self::DockerArchive { path, name }),
            "tar" => path().map(Self::Tar),
            "dir" => path().map(Self::Directory),
            "docker" => registry(rest.strip_prefix("//").unwrap_or(text)),
            _ => registry(text),
        }
    }
}

fn registry(text: &str) -> Result<Source, OciError> {
    let refused = |reason: String| OciError::Source { text: text.to_owned(), reason };
    if text.starts_with('/') || text.starts_with('.') {
        return Err(refused("it looks like a path, and its kind has to stand before it".to_owned()));
    }
    let reference: Reference = text.parse().map_err(|error: oci_client::ParseError| refused(error.to_string()))?;
    // The parser takes some names that it does not take again once they are written out.
    if reference.whole().parse::<Reference>().ok().as_ref() != Some(&reference) {
        return Err(refused("its name has other than small letters, digits and `.`, `_`, `-` between them".to_owned()));
    }
    if reference.digest().is_some_and(|digest| !digest.starts_with("sha256:")) {
        return Err(refused("its digest is not of SHA-256".to_owned()));
    }
    Ok(Source::Registry(reference))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tagged = |f: &mut fmt::Formatter<'_>, kind, path: &PathBuf, tag: &Option<String>| {
            write!(f, "{kind}:{}", path.display())?;
            tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
        };
        match self {
            Self::Registry(reference) => f.write_str(&reference.whole()),
            Self::Layout { path, tag } => tagged(f, "oci", path, tag),
            Self::OciArchive { path, tag } => tagged(f, "oci-archive", path, tag),
            Self::DockerArchive { path, name } => tagged(f, "docker-archive", path, name),
            Self::Tar(path) => write!(f, "tar:{}", path.display()),
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_understood() {
        let whole = |text: &str| text.parse::<Source>().map(|source| source.to_string());
        for (text, expected) in [
            ("python", "docker.io/library/python:latest"),
            ("python:3.12", "docker.io/library/python:3.12"),
            ("docker://alpine", "docker.io/library/alpine:latest"),
            ("me/x", "docker.io/me/x:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("oci:some/layout", "oci:some/layout"),
            ("oci:/some/layout:tag", "oci:/some/layout:tag"),
            ("oci-archive:a.tar:1", "oci-archive:a.tar:1"),
            ("docker-archive:a.tar:x/y:1", "docker-archive:a.tar:x/y:1"),
            ("tar:root.tar.gz", "tar:root.tar.gz"),
            ("dir:/srv/root", "dir:/srv/root"),
        ] {
            assert_eq!(whole(text).unwrap(), expected, "{text}");
        }
        let digest = format!("ghcr.io/x/y@sha256:{}", "a".repeat(64));
        assert_eq!(whole(&digest).unwrap(), digest);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        let sha512 = format!("x@sha512:{}", "a".repeat(128));
        for text in [
            "",
            "UPPER",
            "Upper/name",
            "a b",
            "x:",
            "x@sha256:12",
            &sha512,
            "/a/path",
            "./x",
            "oci:",
            "tar:",
            "dir:",
            "oci:p:",
        ] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(matches!(error, OciError::Source { .. }), "{text}");
            assert!(error.to_string().contains("oci-archive:FILE"), "{error}");
            assert!(!error.is_retryable());
        }
    }
}
