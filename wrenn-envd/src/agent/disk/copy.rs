use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
};

use rustix::{
    fs::{SeekFrom as Sparse, seek},
    io::Errno,
};

/// Copies all of `from` to `to` from byte `at` on, holes as holes, and returns the byte after it. Nothing may be in `to` there.
pub(in crate::agent) fn copy_contents(mut from: &File, mut to: &File, at: u64) -> io::Result<u64> {
    let length = from.metadata()?.len();
    let mut position = 0;
    while position < length {
        let data = match seek(from, Sparse::Data(position)) {
            Ok(data) => data,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            // A file system that does not know of holes.
            Err(Errno::INVAL) => position,
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(from, Sparse::Hole(data)).unwrap_or(length).clamp(data, length);
        from.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(at + data))?;
        let copied = io::copy(&mut from.take(end - data), &mut to)?;
        if copied < end - data {
            if from.metadata()?.len() < end {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
            }
            // It says that it holds more than there is to read: a file of the kernel's.
            to.set_len(at + data + copied)?;
            return Ok(at + data + copied);
        }
        position = end;
    }
    to.set_len(at + length)?;
    Ok(at + length + copy_unsaid(from, to, length, at + length)?)
}

/// What can be read after the length that a file says it has, which it keeps to: one of the kernel's says that it holds
/// nothing. One that grows while it is read is as long as it was.
fn copy_unsaid(mut from: &File, mut to: &File, length: u64, at: u64) -> io::Result<u64> {
    let mut first = [0; 4096];
    from.seek(SeekFrom::Start(length))?;
    let read = from.read(&mut first)?;
    if read == 0 || from.metadata()?.len() != length {
        return Ok(0);
    }
    to.seek(SeekFrom::Start(at))?;
    to.write_all(&first[..read])?;
    let copied = read as u64 + io::copy(&mut from.take(UNSAID_BYTES_MAX), &mut to)?;
    if copied >= UNSAID_BYTES_MAX {
        let message = format!("it does not say how long it is, and holds more than {UNSAID_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(copied)
}

/// Some files of the kernel's are as long as memory.
const UNSAID_BYTES_MAX: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{FileExt as _, MetadataExt as _},
    };

    use super::*;

    #[test]
    fn holes_stay_holes() {
        let directory = tempfile::tempdir().unwrap();
        let from = File::create_new(directory.path().join("from")).unwrap();
        from.write_all_at(b"one", 1 << 20).unwrap();
        from.write_all_at(b"two", 9 << 20).unwrap();
        from.set_len(12 << 20).unwrap();
        let (from, to) = (File::open(directory.path().join("from")).unwrap(), directory.path().join("to"));
        let copy = File::create_new(&to).unwrap();
        let end = copy_contents(&from, &copy, 0).unwrap();
        assert_eq!(copy_contents(&from, &copy, end).unwrap(), 24 << 20);
        let contents = fs::read(directory.path().join("from")).unwrap();
        assert!(fs::read(&to).unwrap() == [contents.as_slice(), contents.as_slice()].concat());
        assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
