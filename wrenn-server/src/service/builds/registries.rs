//! Which registries clients' builds may pull images from.

use std::fmt;

/// The registries, each by its host's name, or `*.` and what the name ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registries(Vec<String>);

/// An image in a registry, with the name of the registry and of the image written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    host: String,
    rest: String,
}

impl Registries {
    /// Those of a list, with commas between them.
    #[must_use]
    pub fn of(list: &str) -> Self {
        let hosts = list.split(',').map(|host| host.trim().to_ascii_lowercase());
        Self(hosts.filter(|host| !host.is_empty()).collect())
    }

    /// What a client's text stands for: an image of one of these registries.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn allowed(&self, text: &str) -> Result<Reference, String> {
        let reference = Reference::parse(text)
            .ok_or_else(|| format!("{text:?} is no image of a registry, as docker.io/library/python:3.12 is"))?;
        let is_it = |host: &String| match host.strip_prefix('*') {
            Some(end) => reference.host.ends_with(end) && reference.host.len() > end.len(),
            None => *host == reference.host,
        };
        if self.0.iter().any(is_it) {
            return Ok(reference);
        }
        Err(format!(
            "this server pulls no images from {}: its operator may allow that with --registries; it pulls from {}",
            reference.host,
            self.0.join(", ")
        ))
    }
}

impl Default for Registries {
    fn default() -> Self {
        Self::of(DEFAULT)
    }
}

impl Reference {
    /// As Docker's command line reads it: what has neither a dot nor a port, and is not `localhost`, is no registry's name.
    fn parse(text: &str) -> Option<Self> {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
        if text.len() > BYTES_MAX || !text.bytes().all(is_good) {
            return None;
        }
        let (host, rest) = match text.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest.to_owned()),
            Some(_) => (DOCKER, text.to_owned()),
            None => (DOCKER, format!("library/{text}")),
        };
        let host = host.to_ascii_lowercase();
        let host = if host == "index.docker.io" { DOCKER.to_owned() } else { host };
        let (path, _) = rest.split_once([':', '@']).unwrap_or((&rest, ""));
        let is_name = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && !part.contains("..");
        let (domain, port) = host.split_once(':').map_or((&*host, None), |(domain, port)| (domain, Some(port)));
        let is_host = domain.starts_with(|c: char| c.is_ascii_alphanumeric())
            && !domain.contains('@')
            && port.is_none_or(|port| port.parse::<u16>().is_ok());
        (is_host && path.split('/').all(is_name)).then_some(Self { host, rest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.rest)
    }
}

/// Those that need no word of an operator's.
pub const DEFAULT: &str =
    "docker.io,ghcr.io,quay.io,gcr.io,*.gcr.io,*.pkg.dev,public.ecr.aws,mcr.microsoft.com,registry.gitlab.com";
const DOCKER: &str = "docker.io";
const BYTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_a_registry_that_is_allowed_is_written_out() {
        let all = Registries::default();
        for (text, right) in [
            ("python:3.12", "docker.io/library/python:3.12"),
            ("oven/bun", "docker.io/oven/bun"),
            ("ghcr.io/a/b:1@sha256:00", "ghcr.io/a/b:1@sha256:00"),
            ("EU.gcr.io/a/b", "eu.gcr.io/a/b"),
            // What other programs take for a file or a directory is an image's name here.
            ("oci:layout", "docker.io/library/oci:layout"),
        ] {
            assert_eq!(all.allowed(text).map(|reference| reference.to_string()), Ok(right.to_owned()));
        }
        for bad in [
            "",
            "oci:/etc",
            "dir:/etc",
            "tar:/etc/passwd",
            "docker://x",
            "/etc/passwd",
            "./x",
            "../x",
            "a/../b",
            "a b",
            "evil.example/a",
            "localhost:5000/a",
            "gcr.io.evil.example/a",
            "a@gcr.io/x",
            &"a".repeat(600),
        ] {
            assert!(all.allowed(bad).is_err(), "{bad}");
        }
        assert!(Registries::of("ghcr.io, localhost:5000").allowed("localhost:5000/a").is_ok());
        assert!(all.allowed("*.gcr.io/a").is_err());
    }
}
