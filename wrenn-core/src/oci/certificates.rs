//! Whom a registry's certificate may be of, beside the host's own authorities: what Docker, Podman and Skopeo look for in
//! `certs.d`. <https://docs.docker.com/engine/security/certificates/>

use std::io;
use std::path::{Path, PathBuf};

use crate::oci::error::OciError;

/// Where those directories are, in the order in which they are looked at: each has a directory `HOST[:PORT]` for a registry.
pub(super) fn default_directories() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let own = home.map(|home| home.join(".config/containers/certs.d"));
    own.into_iter().chain(["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()]).collect()
}

/// The files `*.crt` of the first directory that there is for `host`: each has certificates in PEM.
///
/// # Errors
/// A directory or a file cannot be read, or the directory has the certificate of a client, which is not sent.
pub(super) async fn authorities(host: &str, directories: &[PathBuf]) -> Result<Vec<Vec<u8>>, OciError> {
    for directory in directories {
        let directory = directory.join(host);
        let names = match names(&directory).await {
            Ok(names) => names,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(error) => return Err(OciError::io("read", &directory)(error)),
        };
        let mut authorities = Vec::new();
        for path in names {
            match path.extension().and_then(|end| end.to_str()) {
                Some("crt") => authorities.push(tokio::fs::read(&path).await.map_err(OciError::io("read", &path))?),
                Some("cert") => {
                    return Err(OciError::Credentials {
                        registry: host.to_owned(),
                        reason: format!("{} is a client's certificate, and none is sent", path.display()),
                    });
                }
                _ => {}
            }
        }
        return Ok(authorities);
    }
    Ok(Vec::new())
}

/// The paths in a directory, sorted.
async fn names(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = tokio::fs::read_dir(directory).await?;
    let mut paths = Vec::new();
    while let Some(entry) = entries.next_entry().await? {
        paths.push(entry.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_directory_of_a_registry_has_its_authorities() {
        let [first, second] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (directory, host, name) in [
            (&first, "a:5000", "b.crt"),
            (&first, "a:5000", "a.crt"),
            (&first, "a:5000", "a.txt"),
            (&second, "a:5000", "c.crt"),
            (&second, "other", "d.crt"),
            (&second, "client", "x.cert"),
        ] {
            std::fs::create_dir_all(directory.path().join(host)).unwrap();
            std::fs::write(directory.path().join(host).join(name), name).unwrap();
        }
        let directories = ["/nowhere".into(), first.path().to_owned(), second.path().to_owned()];
        let of = async |host| authorities(host, &directories).await.map(|found| found.concat());
        assert_eq!(of("a:5000").await.unwrap(), b"a.crtb.crt");
        assert_eq!(of("other").await.unwrap(), b"d.crt");
        assert_eq!(of("a").await.unwrap(), b"");
        assert!(of("client").await.unwrap_err().to_string().contains("x.cert"));
    }
}
