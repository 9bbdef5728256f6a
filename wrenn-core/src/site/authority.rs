//! The certificate authority of a data directory, which its guests trust where their policies have rules.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use wrenn_net::{Authority, NetError};

use crate::error::{Error, Result};
use crate::site::record;

/// As it is kept. Nobody but the directory's owner may read it.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// Its key and its certificate.
    pem: String,
}

/// The authority that is kept at `path`; a new one where there is none. Blocks.
pub(crate) fn open(path: &Path) -> Result<Authority, NetError> {
    const WHAT: &str = "keep a certificate authority";
    let failed = |error: Error| NetError::Step { what: WHAT, source: io::Error::other(error) };
    if let Some(Kept { pem }) = record::read(path).map_err(failed)? {
        return Authority::from_pem(&pem);
    }
    let authority = Authority::generate()?;
    if record::write_new(path, &Kept { pem: authority.to_pem() }).map_err(failed)? {
        return Ok(authority);
    }
    // Another program was quicker.
    match record::read(path).map_err(failed)? {
        Some(Kept { pem }) => Authority::from_pem(&pem),
        None => Ok(authority),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn all_programs_of_a_directory_have_one_authority_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authority.json");
        let certificates: Vec<String> = std::thread::scope(|scope| {
            let open = || open(&path).unwrap().certificate().to_owned();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(certificates.iter().all(|certificate| *certificate == certificates[0]));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file stays");
        std::fs::write(&path, "{\"pem\": \"\"}").unwrap();
        assert!(open(&path).is_err(), "a damaged one is not replaced, for guests trust it");
    }
}
