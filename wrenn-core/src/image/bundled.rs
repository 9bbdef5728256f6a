//! The agent that comes with the library. `build.rs` put it here: from the published package, or built from its sources.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use crate::image::digest;
use crate::image::error::ImageError;

/// The agent's binary, unpacked. Takes some 10 ms.
pub(super) fn bytes() -> Result<Vec<u8>, ImageError> {
    if PACKED.is_empty() {
        return Err(ImageError::NoAgent);
    }
    if !PACKED.starts_with(&ZSTD_MAGIC) {
        return Ok(PACKED.to_vec());
    }
    unpacked(PACKED).map_err(ImageError::io("unpack", Path::new("the agent in this program")))
}

/// Identifies the agent; `None` where the library was built without one. Of one that is packed the first call takes some
/// 20 ms. The other's bytes are not looked at: every program that makes a sandbox would have them in memory from then on.
pub(super) fn sha256() -> Option<&'static str> {
    if !PLAIN_DIGEST.is_empty() {
        return Some(PLAIN_DIGEST);
    }
    static DIGEST: OnceLock<Option<String>> = OnceLock::new();
    DIGEST.get_or_init(|| bytes().ok().map(|bytes| digest::of_bytes(&bytes))).as_deref()
}

fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::decompress(packed, BYTES_MAX)
}

/// As it is, or compressed with zstd; empty where `WRENN_AGENT=none` was set for the build.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));
/// That of an agent that is not compressed.
static PLAIN_DIGEST: &str = include_str!(concat!(env!("OUT_DIR"), "/agent.sha256"));
/// RFC 8878, 3.1.1.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The agent has some 4 MB.
const BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_an_executable_file_whose_digest_stays() {
        let bytes = bytes().unwrap();
        assert!(bytes.starts_with(b"\x7fELF"));
        assert_eq!(sha256(), Some(digest::of_bytes(&bytes).as_str()));
    }

    #[test]
    fn what_was_compressed_comes_back_and_rubbish_is_an_error() {
        let packed = zstd::bulk::compress(&[7; 100_000], 19).unwrap();
        assert!(packed.starts_with(&ZSTD_MAGIC));
        assert_eq!(unpacked(&packed).unwrap(), [7; 100_000]);
        unpacked(&packed[..packed.len() - 1]).unwrap_err();
    }
}
