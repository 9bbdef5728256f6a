use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
};

use rustix::{
    fs::{SeekFrom as Sparse, seek},
    io::Errno,
};

/// Copies all of `from` to `to` from byte `at` on, holes as holes, and returns the byte after it.
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
        if io::copy(&mut from.take(end - data), &mut to)? < end - data {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        position = end;
    }
    to.set_len(at + length)?;
    Ok(at + length)
}

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
