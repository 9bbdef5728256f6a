//! Keys, which clients send with each request. The server keeps their digests alone.

use axum::http::{HeaderMap, header};
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::service::error::ServiceError;
use crate::store::contract::Store;
use crate::store::records::{KeyRecord, Terms};

/// Makes a key, and returns it with its record. It is not to be had again.
///
/// It is `e2b_` and 40 hex digits, which is what E2B's clients take for a key; the first eight are its id.
///
/// # Errors
/// [`ServiceError::Store`].
pub async fn create(
    store: &dyn Store,
    name: &str,
    terms: Terms,
    now_ms: i64,
) -> Result<(String, KeyRecord), ServiceError> {
    let random: [u8; KEY_BYTES] = rand::rng().random();
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("{PREFIX}{digits}");
    let record = KeyRecord {
        id: digits[..ID_DIGITS].to_owned(),
        name: name.to_owned(),
        hash: Sha256::digest(&key).to_vec(),
        created_at_ms: now_ms,
        revoked_at_ms: None,
        terms,
    };
    store.add_key(&record).await?;
    Ok((key, record))
}

/// The key's record; `None` if there is none, or it was revoked, or its time is over.
///
/// # Errors
/// [`ServiceError::Store`].
pub async fn check(store: &dyn Store, key: &str, now_ms: i64) -> Result<Option<KeyRecord>, ServiceError> {
    let Some(id) = key.strip_prefix(PREFIX).and_then(|digits| digits.get(..ID_DIGITS)) else { return Ok(None) };
    let Some(record) = store.key(id).await? else { return Ok(None) };
    let is_right = bool::from(record.hash.ct_eq(&Sha256::digest(key)));
    let is_over = record.terms.expires_at_ms.is_some_and(|end| end <= now_ms);
    Ok(Some(record).filter(|record| is_right && !is_over && record.revoked_at_ms.is_none()))
}

/// What a request was sent with as its key: `X-API-Key`, or what follows `Bearer`.
#[must_use]
pub fn sent(headers: &HeaderMap) -> Option<&str> {
    let text = |name| headers.get(name)?.to_str().ok();
    text(header::HeaderName::from_static("x-api-key"))
        .or_else(|| text(header::AUTHORIZATION)?.strip_prefix("Bearer ").map(str::trim))
}

const PREFIX: &str = "e2b_";
const KEY_BYTES: usize = 20;
const ID_DIGITS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::Sqlite;

    #[tokio::test]
    async fn a_key_is_good_until_it_is_revoked_and_no_other_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Sqlite::open(&dir.path().join("records.sqlite")).await.expect("a store");
        let (key, record) =
            create(&store, "ada", Terms { expires_at_ms: Some(9), ..Terms::default() }, 1).await.expect("a key");
        assert!(key.len() == 44 && key.starts_with("e2b_") && key[4..].bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(!format!("{record:?}").contains(&key[12..]), "the record does not have it");
        assert_eq!(check(&store, &key, 8).await.expect("an answer"), Some(record.clone()));
        assert_eq!(check(&store, &key, 9).await.expect("an answer"), None, "its time is over");
        let last = if key.ends_with('0') { "1" } else { "0" };
        let other = format!("{}{last}", &key[..43]);
        for bad in ["", "e2b_", "e2b_\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}", &key[..43], &key[4..], &format!("{key}0"), &other]
        {
            assert_eq!(check(&store, bad, 8).await.expect("an answer"), None, "{bad}");
        }
        assert!(store.revoke_key(&record.id, 2).await.expect("revoked"));
        assert!(!store.revoke_key(&record.id, 3).await.expect("an answer"), "only once");
        assert_eq!(check(&store, &key, 8).await.expect("an answer"), None);
    }
}
