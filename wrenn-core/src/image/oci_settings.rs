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

/// The name of an image that nobody named: what people would call it. A text that is no reference becomes a name all the same,
/// and is refused by the build.
pub(super) fn name_of(reference: &str) -> String {
    let short = reference.strip_prefix("docker://").unwrap_or(reference);
    let short = short.strip_prefix("docker.io/").unwrap_or(short);
    let short = short.strip_prefix("library/").unwrap_or(short);
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c) { c } else { '-' };
    let name: String = short.to_ascii_lowercase().chars().map(plain).collect();
    let name = name.trim_matches(['-', '.', '_']);
    if name.len() <= NAME_LENGTH_MAX {
        return name.to_owned();
    }
    // What tells two long ones apart is often at the end.
    let hash = digest::of_bytes(reference.as_bytes());
    format!("{}-{}", &name[..NAME_LENGTH_MAX - 13], &hash[..12])
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
const NAME_LENGTH_MAX: usize = 63;
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
            ("ghcr.io/Acme/Tool:v1", "ghcr.io-acme-tool-v1"),
            ("localhost:5000/a/b", "localhost-5000-a-b"),
            ("dir:/srv/root/", "dir--srv-root"),
        ] {
            assert_eq!(name_of(reference), name);
            assert!(crate::image::name::Name::parse(&name_of(reference)).is_ok());
        }
        let [one, other] = ["a", "b"].map(|end| name_of(&format!("ghcr.io/acme/{end}@sha256:{digest}")));
        assert!(one.len() == 63 && one != other, "{one} {other}");
        assert!(crate::image::name::Name::parse(&one).is_ok());
    }

    #[test]
    fn a_name_is_no_reference() {
        assert!(["python:3.12", "me/x", "a@sha256:1", "dir:x"].iter().all(|text| is_reference(text)));
        assert!(["base", "python", "a-1.2_x"].iter().all(|text| !is_reference(text)));
    }
}
