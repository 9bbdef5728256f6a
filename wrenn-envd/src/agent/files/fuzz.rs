//! What the repository's fuzzer calls: it takes any bytes, and panics where a promise is broken.

use std::{fs, io};

use bytes::Bytes;
use futures::stream;

use super::{parts::Parts, unpacker::unpack};
use crate::agent::api_error::ApiError;

/// A multipart body whose boundary is [`BOUNDARY`]: its parts have no more bytes than it, and reading it ends. The first
/// byte says how long the pieces are in which it arrives.
///
/// # Panics
/// A promise is broken.
pub fn multipart(bytes: &[u8]) {
    let Some((&piece_len, body)) = bytes.split_first() else { return };
    let pieces = body.chunks(usize::from(piece_len) + 1).map(|piece| Ok(Bytes::copy_from_slice(piece)));
    let pieces: Vec<io::Result<Bytes>> = pieces.collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without a driver");
    if let Ok(read_bytes) = runtime.block_on(read(Parts::new(stream::iter(pieces), BOUNDARY.to_owned()))) {
        assert!(read_bytes <= body.len(), "{read_bytes} bytes came of {}", body.len());
    }
}

/// An archive that is unpacked below a directory: any bytes are unpacked there or refused, and nothing beside the directory
/// changes.
///
/// # Panics
/// A promise is broken.
pub fn archives(bytes: &[u8]) {
    let place = tempfile::tempdir().expect("a directory");
    let (top, beside) = (place.path().join("top"), place.path().join("beside"));
    fs::create_dir(&top).and_then(|()| fs::write(&beside, "beside")).expect("a place to unpack to");
    unpack(&top, bytes).ok();
    assert_eq!(fs::read_dir(place.path()).map(Iterator::count).ok(), Some(2), "something is beside the directory");
    assert_eq!(fs::read(&beside).ok().as_deref(), Some(&b"beside"[..]), "a file beside the directory was changed");
}

/// What stands between the parts of a body for [`multipart`].
pub const BOUNDARY: &str = "frontier";

/// Reads every part as an upload does, and returns how many bytes they had.
async fn read(mut parts: Parts) -> Result<usize, ApiError> {
    let mut read_bytes = 0;
    while let Some(mut part) = parts.next().await? {
        if part.name() == Some("path") {
            let path = part.text(PATH_BYTES_MAX).await?;
            assert!(path.len() <= PATH_BYTES_MAX, "a text of {} bytes", path.len());
            read_bytes += path.len();
            continue;
        }
        read_bytes += part.file_name().map_or(0, str::len);
        while let Some(piece) = part.chunk().await? {
            read_bytes += piece.len();
        }
    }
    Ok(read_bytes)
}

const PATH_BYTES_MAX: usize = 64;
