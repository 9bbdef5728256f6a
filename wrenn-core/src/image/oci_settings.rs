//! The settings of an image whose base is an OCI image.

use crate::image::digest;
use crate::image::error::ImageError;
use crate::oci::{Credentials, PullOptions, Source};

/// A reference to an OCI image, and how it is pulled.
#[derive(Debug, Clone)]
pub(super) struct OciSettings {
    /// As the caller wrote it.
    pub(super) reference: String,
    pub(super) pull: PullOptions,
}

impl OciSettings {
    pub(super) fn new(reference: String) -> Self {
        Self { reference, pull: PullOptions::default() }
    }

    pub(super) fn source(&self) -> Result<Source, ImageError> {
        Ok(self.reference.parse()?)
    }

    /// Changes with anything that goes into the base, but for what the reference leads to.
    pub(super) fn digest(&self) -> Result<String, ImageError> {
        Ok(digest::of_bytes(format!("{REVISION}\n{}", self.source()?).as_bytes()))
    }

    pub(super) fn log_in(&mut self, user: String, password: String) {
        self.pull.credentials = Some(Credentials::Basic { user, password });
    }

    pub(super) fn check(&self) -> Result<(), ImageError> {
        for (registry, mirrors) in &self.pull.mirrors {
            if let Some(bad) = [registry].into_iter().chain(mirrors).find(|host| !is_host(host)) {
                return Err(ImageError::setting("mirror", bad, HOST));
            }
        }
        match self.pull.plain_http.iter().find(|host| !is_host(host)) {
            Some(bad) => Err(ImageError::setting("plain_http", bad, HOST)),
            None => self.source().map(drop),
        }
    }
}

/// The name of an image that nobody named. A text that is no reference becomes a name all the same, and is refused by the build.
///
/// No two images have one: `NAME:TAG` of Docker's own is `NAME-TAG` where that can stand for nothing else, and any other name ends
/// with a digest of the reference.
pub(super) fn name_of(reference: &str) -> String {
    let source = reference.parse::<Source>().ok();
    let short = readable(reference);
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let stem = short.split(['-', '.', '_']).next().unwrap_or_default();
    let is_own = match &source {
        Some(Source::Registry(known)) => known.repository().strip_prefix("library/").is_some_and(|name| {
            known.registry() == DOCKER
                && known.digest().is_none()
                && is_plain(name)
                && name == stem
                && [name.to_owned(), format!("{name}-{}", known.tag().unwrap_or_default())].contains(&short)
        }),
        _ => false,
    };
    if is_own && short.len() <= NAME_LENGTH_MAX {
        return short;
    }
    let whole = source.map_or_else(|| reference.to_owned(), |source| source.to_string());
    let hash = digest::of_bytes(whole.as_bytes());
    let end = short.len().min(NAME_LENGTH_MAX - 1 - HASH_DIGITS);
    format!("{}-{}", &short[..end], &hash[..HASH_DIGITS])
}

/// The name that an earlier wrenn gave such an image. Others may have had it too.
pub(super) fn former_name_of(reference: &str) -> String {
    let name = readable(reference);
    if name.len() <= NAME_LENGTH_MAX {
        return name;
    }
    // What tells two long ones apart is often at the end.
    let hash = digest::of_bytes(reference.as_bytes());
    format!("{}-{}", &name[..NAME_LENGTH_MAX - 1 - HASH_DIGITS], &hash[..HASH_DIGITS])
}

/// What people call it, in the letters of a name.
fn readable(reference: &str) -> String {
    let short = reference.strip_prefix("docker://").unwrap_or(reference);
    let short = short.strip_prefix("docker.io/").unwrap_or(short);
    let short = short.strip_prefix("library/").unwrap_or(short);
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c) { c } else { '-' };
    let name: String = short.to_ascii_lowercase().chars().map(plain).collect();
    name.trim_matches(['-', '.', '_']).to_owned()
}

/// Whether a text that was given in a name's place is a reference: no name has one of these.
pub(crate) fn is_reference(text: &str) -> bool {
    text.contains([':', '/', '@'])
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]/_".contains(&byte))
}

/// Raise it when the code makes another base of the same image.
const REVISION: &str = "oci 1";
const DOCKER: &str = "docker.io";
const NAME_LENGTH_MAX: usize = 63;
const HASH_DIGITS: usize = 12;
const HOST: &str = "a registry's host, perhaps with a port, like `registry.example:5000`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_called_what_people_call_it() {
        let digest = "f".repeat(64);
        for (reference, name) in [
            ("python:3.12", "python-3.12"),
            ("docker.io/library/python:3.12", "python-3.12"),
            ("docker://alpine:3", "alpine-3"),
            ("alpine", "alpine"),
            ("node:22-alpine3.20", "node-22-alpine3.20"),
            ("ghcr.io/acme/Tool:v1", "ghcr.io-acme-tool-v1-"),
            ("localhost:5000/a/b", "localhost-5000-a-b-"),
            ("dir:/srv/root/", "dir--srv-root-"),
            ("dir:root", "dir-root-"),
            ("python:3.12-", "python-3.12-"),
        ] {
            let given = name_of(reference);
            let (stem, end) = given.split_at(name.len());
            assert_eq!((stem, end.len()), (name, if name.ends_with('-') { HASH_DIGITS } else { 0 }), "{given}");
            assert!(crate::image::name::Name::parse(&given).is_ok());
        }
        for reference in [format!("ghcr.io/acme/a@sha256:{digest}"), "/".to_owned(), String::new(), "\u{e9}".repeat(99)]
        {
            assert!(name_of(&reference).len() <= 63, "{reference}");
        }
    }

    #[test]
    fn no_two_images_have_one_name() {
        let digest = "f".repeat(64);
        let mut names = std::collections::BTreeMap::new();
        for reference in [
            "python:3.12",
            "python-3.12",
            "python:3.12-slim",
            "python-3.12:slim",
            "python.3:12",
            "python:3_12",
            "python:v1",
            "python:V1",
            "python/3.12",
            "me/python:3.12",
            "me-python:3.12",
            "quay.io/python:3.12",
            "quay.io-python:3.12",
            "dir:root",
            "docker.io/library/dir:root",
            "localhost:5000/a/b",
            "localhost:5000/a-b",
            &format!("python:3.12@sha256:{digest}"),
            &format!("python@sha256:{digest}"),
        ] {
            let other = names.insert(name_of(reference), reference);
            assert_eq!(other, None, "{reference} is called as that is");
        }
        assert_eq!(name_of("me/x"), name_of("docker.io/me/x"));
    }

    #[test]
    fn a_name_is_no_reference() {
        assert!(["python:3.12", "me/x", "a@sha256:1", "dir:x"].iter().all(|text| is_reference(text)));
        assert!(["base", "python", "a-1.2_x"].iter().all(|text| !is_reference(text)));
    }
}
