//! Where the certificate authorities are that the guest's TLS clients trust, and what tells it to those that do not look there.

use std::{fs, path::Path};

/// Debian's bundle, which OpenSSL, GnuTLS, curl, git and Go read there.
pub(super) const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// Those that the host has brought. `update-ca-certificates` looks there for an administrator's own.
pub(super) const FROM_HOST: &str = "usr/local/share/ca-certificates/wrenn.crt";

/// Variables for programs that bring a bundle of their own, once the host has brought authorities.
pub(super) fn variables() -> Vec<(String, String)> {
    variables_in(Path::new("/"))
}

fn variables_in(root: &Path) -> Vec<(String, String)> {
    let len = |path: &str| fs::metadata(root.join(path)).ok().filter(fs::Metadata::is_file).map(|it| it.len());
    let Some(brought) = len(FROM_HOST) else { return Vec::new() };
    // In an image that keeps its bundle elsewhere, this one has the host's alone.
    let is_whole = len(BUNDLE).is_some_and(|bundle| bundle > brought);
    let whole = IN_PLACE.iter().filter(|_| is_whole).map(|name| (*name, BUNDLE));
    BESIDES
        .iter()
        .map(|name| (*name, FROM_HOST))
        .chain(whole)
        .map(|(name, path)| (name.into(), format!("/{path}")))
        .collect()
}

/// Of Node, for authorities besides its own.
const BESIDES: [&str; 1] = ["NODE_EXTRA_CA_CERTS"];
/// Of Python's `ssl` and `httpx`, of `requests` and `pip`, and of AWS's clients, for a bundle in the place of theirs.
const IN_PLACE: [&str; 3] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"];

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn programs_with_a_bundle_of_their_own_are_told_once_there_is_something_to_tell() {
        let root = tempfile::tempdir().unwrap();
        let names = || variables_in(root.path()).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        put(root.path(), BUNDLE, "the image's\n");
        assert!(names().is_empty(), "the image's alone");
        put(root.path(), FROM_HOST, "the host's\n");
        put(root.path(), BUNDLE, "the host's\n");
        assert_eq!(names(), ["NODE_EXTRA_CA_CERTS"], "the image's are elsewhere");
        put(root.path(), BUNDLE, "the image's\nthe host's\n");
        assert_eq!(names(), ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"]);
        let node = ("NODE_EXTRA_CA_CERTS".to_owned(), "/usr/local/share/ca-certificates/wrenn.crt".to_owned());
        assert!(variables_in(root.path()).contains(&node));
        fs::remove_file(root.path().join(FROM_HOST)).unwrap();
        fs::create_dir(root.path().join(FROM_HOST)).unwrap();
        assert!(names().is_empty(), "it is no file");
    }
}
