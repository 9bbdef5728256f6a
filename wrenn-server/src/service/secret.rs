//! The server's own secret, and the tokens that are made of it.
//!
//! A sandbox's tokens follow from its id, so that they are the same after each resume and each restart, and no record has
//! them. The guest's agent has a token of its own, which is another one after each resume, and which no client sees.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use wrenn_core::SandboxId;

/// Makes the tokens of sandboxes.
pub struct Secret([u8; LEN]);

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Calls of the guest's agent: commands and files.
    Agent,
    /// Requests to the guest's own ports.
    Traffic,
}

impl Secret {
    /// The secret in the file `path`, which is made if it is not there, for its owner alone.
    ///
    /// # Errors
    /// The file cannot be read or written, or has no secret.
    pub fn open(path: &Path) -> io::Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => {
                let secret = bytes.try_into().map_err(|_| io::Error::other("it has another length than a secret"))?;
                Ok(Self(secret))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let secret = Self(rand::random());
                // Whole, or not there.
                let whole = path.with_extension("new");
                let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&whole);
                let mut file = options?;
                file.write_all(&secret.0)?;
                file.sync_all()?;
                std::fs::rename(&whole, path)?;
                Ok(secret)
            }
            Err(error) => Err(error),
        }
    }

    /// The token of a sandbox.
    #[must_use]
    pub fn token(&self, id: &SandboxId, purpose: Purpose) -> String {
        let digits: String = self.digest(id, purpose).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{id}{digits}")
    }

    /// Whose token that is; `None` if it is nobody's.
    #[must_use]
    pub fn owner_of(&self, token: &str, purpose: Purpose) -> Option<SandboxId> {
        let id: SandboxId = token.get(..ID_LEN)?.parse().ok()?;
        let is_right = bool::from(self.token(&id, purpose).as_bytes().ct_eq(token.as_bytes()));
        is_right.then_some(id)
    }

    /// The token by which whoever has it may send an owner's files of a hash, until `until_sec` seconds after 1970.
    #[must_use]
    pub fn upload_token(&self, owner: &str, hash: &str, until_sec: i64) -> String {
        let digest =
            self.mac(&[b"upload ", owner.as_bytes(), b"\0", hash.as_bytes(), format!("\0{until_sec}").as_bytes()]);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether that is such a token, whether or not it is too late.
    #[must_use]
    pub fn is_upload_token(&self, token: &str, owner: &str, hash: &str, until_sec: i64) -> bool {
        self.upload_token(owner, hash, until_sec).as_bytes().ct_eq(token.as_bytes()).into()
    }

    fn digest(&self, id: &SandboxId, purpose: Purpose) -> [u8; LEN] {
        let purpose: &[u8] = match purpose {
            Purpose::Agent => b"agent ",
            Purpose::Traffic => b"traffic ",
        };
        self.mac(&[purpose, id.as_str().as_bytes()])
    }

    fn mac(&self, parts: &[&[u8]]) -> [u8; LEN] {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0).expect("a key of any length");
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

const LEN: usize = 32;
/// `sb`, and 16 digits.
const ID_LEN: usize = 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_sandboxs_for_one_purpose_and_the_same_the_next_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        let secret = Secret::open(&path).expect("a secret");
        let id: SandboxId = "sb00f00ba70000002a".parse().expect("an id");
        let other: SandboxId = "sb00f00ba70000002b".parse().expect("an id");
        let token = secret.token(&id, Purpose::Agent);
        assert_eq!(secret.owner_of(&token, Purpose::Agent), Some(id.clone()));
        assert_eq!(secret.owner_of(&token, Purpose::Traffic), None);
        let forged = token.replace("2a", "2b");
        for bad in [
            &*forged,
            &token[..token.len() - 1],
            "",
            "sb",
            "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}",
        ] {
            assert_eq!(secret.owner_of(bad, Purpose::Agent), None, "{bad}");
        }
        let upload = secret.upload_token("ada", "00", 7);
        assert!(secret.is_upload_token(&upload, "ada", "00", 7));
        for (owner, hash, until_sec) in [("eve", "00", 7), ("ada", "01", 7), ("ada", "00", 70), ("ada\x0000", "", 7)] {
            assert!(!secret.is_upload_token(&upload, owner, hash, until_sec), "{owner:?}");
        }
        assert_ne!(secret.token(&other, Purpose::Agent), token);
        assert_eq!(Secret::open(&path).expect("the same").token(&id, Purpose::Agent), token);
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("a file").permissions());
        assert_eq!(mode & 0o7777, 0o600);
        std::fs::write(&path, "short").expect("written");
        assert!(Secret::open(&path).is_err());
    }
}
