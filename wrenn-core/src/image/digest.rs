//! SHA-256 of bytes and files, in hexadecimal.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest as _, Sha256};

pub(super) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// What `sha256sum` prints for the file.
pub(super) fn of_file(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mut hash = Sha256::new();
    let end = file.metadata()?.len();
    feed(&file, 0, end, |_, bytes| hash.update(bytes))?;
    Ok(hex(&hash.finalize()))
}

/// A hash of the file's blocks that are not zero, each after its index: holes cost nothing, and a file system that
/// keeps zeros as data gives the same result.
pub(super) fn of_sparse_file(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mut hash = Sha256::new();
    let end = file.metadata()?.len();
    let mut position = 0;
    while let Some(start) = seek(&file, position, Whence::SeekData)? {
        let start = start - start % BLOCK;
        let stop = seek(&file, start.max(position), Whence::SeekHole)?.unwrap_or(end);
        feed(&file, start, stop, |offset, bytes| {
            for (index, block) in (offset / BLOCK..).zip(bytes.chunks(BLOCK_BYTES)) {
                if block.iter().any(|&byte| byte != 0) {
                    hash.update(index.to_le_bytes());
                    hash.update(block);
                }
            }
        })?;
        position = stop;
    }
    Ok(hex(&hash.finalize()))
}

fn feed(file: &File, start: u64, stop: u64, mut take: impl FnMut(u64, &[u8])) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK_BYTES * 256];
    let mut offset = start;
    while offset < stop {
        let wanted = usize::try_from(stop - offset).map_or(buffer.len(), |n| n.min(buffer.len()));
        file.read_exact_at(&mut buffer[..wanted], offset)?;
        take(offset, &buffer[..wanted]);
        offset += wanted as u64;
    }
    Ok(())
}

/// The next data or hole at or after `from`; `None` past the last data.
fn seek(file: &File, from: u64, whence: Whence) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(io::Error::other)?;
    match lseek(file, from, whence) {
        Ok(at) => u64::try_from(at).map(Some).map_err(io::Error::other),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").ok();
        text
    })
}

const BLOCK: u64 = 4096;
const BLOCK_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_file_has_the_digest_of_its_bytes() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let bytes = vec![7; 3 * 1024 * 1024 + 5];
        file.as_file().write_all_at(&bytes, 0)?;
        assert_eq!(of_file(file.path())?, of_bytes(&bytes));
        Ok(())
    }

    #[test]
    fn holes_and_zeros_are_alike_and_places_are_not() -> io::Result<()> {
        let digest = |zero_at: Option<u64>, data_at: u64| {
            let file = tempfile::NamedTempFile::new()?;
            file.as_file().set_len(64 * BLOCK + 100)?;
            if let Some(offset) = zero_at {
                file.as_file().write_all_at(&[0; 9000], offset)?;
            }
            file.as_file().write_all_at(b"data", data_at)?;
            of_sparse_file(file.path())
        };
        assert_eq!(digest(None, 20 * BLOCK)?, digest(Some(70), 20 * BLOCK)?);
        assert_ne!(digest(None, 20 * BLOCK)?, digest(None, 21 * BLOCK)?);
        Ok(())
    }
}
