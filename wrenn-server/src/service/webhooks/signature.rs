//! What says that a delivery is from this server, and whole.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::store::records::Hidden;

/// As E2B signs: the SHA-256 of the secret and the body, in base64 without what fills it up.
pub(super) fn as_e2b(Hidden(secret): &Hidden, body: &[u8]) -> String {
    STANDARD_NO_PAD.encode(Sha256::new().chain_update(secret).chain_update(body).finalize())
}

/// The HMAC of the time in seconds, a dot and the body: who has seen one delivery can neither make another nor send it again
/// later.
pub(super) fn own(Hidden(secret): &Hidden, at_sec: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key of any length");
    mac.update(format!("{at_sec}.").as_bytes());
    mac.update(body);
    let digits: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={at_sec},v1={digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_that_others_make() {
        let secret = Hidden("secret".to_owned());
        // printf 'secret{}' | openssl dgst -sha256 -binary | base64
        assert_eq!(as_e2b(&secret, b"{}"), "e9B8ejqc2/sG6v6Lh2cAHsXgRKkAkGentpGLCOuoSYs");
        // printf '7.{}' | openssl dgst -sha256 -hmac secret
        assert_eq!(own(&secret, 7, b"{}"), "t=7,v1=76aad9429f417882918162a1928a38769fff65cc07b6bfa344ac9c5fb1e3448e");
    }
}
