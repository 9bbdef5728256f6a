//! The archives that `ADD` unpacks: read on the host, and packed anew for the guest's agent, so that the guest needs no program
//! for that.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use tar::Builder;

use crate::build::archive::append_read;
use crate::oci::Limits;
use crate::oci::decoder::Decoder;
use crate::oci::tar_reader::{Extents, TarKind, TarReader};

/// Whether a file is an archive that is unpacked: a tar, compressed or not, that has an entry. Blocks.
pub(super) fn is_archive(path: &Path) -> io::Result<bool> {
    let opened = Decoder::sniff(File::open(path)?)?;
    // What cannot be read as an archive is none.
    Ok(TarReader::new(BufReader::new(opened)).next().is_ok_and(|entry| entry.is_some()))
}

/// Packs anew what an archive has, for the directory that it is unpacked in. `owner` is a user and a group, which all of it gets;
/// without one each entry has the archive's.
///
/// # Errors
/// The archive is malformed, has `..` in a name, or exceeds the limits of an image.
pub(super) fn repack_added(
    archive: impl Read,
    owner: Option<(u64, u64)>,
    limits: Limits,
    out: &mut Builder<impl Write>,
) -> io::Result<()> {
    let limited = Limited { inner: Decoder::sniff(archive)?, left: limits.unpacked_bytes, limits };
    let mut archive = TarReader::new(BufReader::with_capacity(BUFFER_BYTES, limited));
    let mut left = limits.unpacked_bytes;
    for count in 0_u64.. {
        let Some(mut entry) = archive.next()? else { break };
        if count == limits.entries {
            return Err(invalid(format!("it has more than {count} entries, which is the most that is unpacked")));
        }
        entry.path = below(&entry.path)?;
        if entry.path.is_empty() {
            continue;
        }
        if let TarKind::Link(target) = &mut entry.kind {
            *target = below(target)?;
        }
        if let Some((uid, gid)) = owner {
            (entry.uid, entry.gid) = (uid, gid);
        }
        entry.xattrs.retain(|name, _| name.starts_with(b"user.") || name == b"security.capability");
        let none = Extents::default();
        let extents = if let TarKind::File(extents) = &entry.kind { extents } else { &none };
        // Holes take nothing of the archive.
        left = left.checked_sub(extents.size).ok_or_else(|| too_long(limits))?;
        append_read(&entry, &mut Whole { archive: &mut archive, extents, next: 0, at: 0 }, out)?;
    }
    // What follows the archive's end tells whether all of it has come.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
}

/// A path of an archive, relative to the directory that the archive is unpacked in.
fn below(path: &[u8]) -> io::Result<Vec<u8>> {
    let mut names = Vec::new();
    for part in Path::new(OsStr::from_bytes(path)).components() {
        match part {
            Component::Normal(name) => names.push(name.as_bytes()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                let path = String::from_utf8_lossy(path);
                return Err(invalid(format!("{path}: `..` in a name of an archive is refused: pack it without")));
            }
        }
    }
    Ok(names.join(&b'/'))
}

/// Fails once more than `left` bytes were read.
struct Limited<R> {
    inner: R,
    left: u64,
    limits: Limits,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| too_long(self.limits))?;
        Ok(count)
    }
}

/// A file with zeros in its holes.
struct Whole<'a, R> {
    archive: &'a mut TarReader<R>,
    extents: &'a Extents,
    /// The first extent that was not read to its end.
    next: usize,
    at: u64,
}

impl<R: Read> Read for Whole<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.extents.list.get(self.next).is_some_and(|(offset, length)| offset + length == self.at) {
            self.next += 1;
        }
        let within = |bytes: u64| usize::try_from(bytes).map_or(buffer.len(), |bytes| bytes.min(buffer.len()));
        let count = match self.extents.list.get(self.next) {
            Some(&(offset, _)) if self.at < offset => {
                let count = within(offset - self.at);
                buffer[..count].fill(0);
                count
            }
            Some(&(offset, length)) => {
                let count = within(offset + length - self.at);
                self.archive.read(&mut buffer[..count])?
            }
            None => {
                let count = within(self.extents.size - self.at);
                buffer[..count].fill(0);
                count
            }
        };
        self.at += count as u64;
        Ok(count)
    }
}

fn too_long(limits: Limits) -> io::Error {
    invalid(format!("it has more than {} bytes unpacked, which is the most that is taken", limits.unpacked_bytes))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

const BUFFER_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use tar::Header;

    use super::*;

    fn entry(out: &mut Builder<Vec<u8>>, path: &str, content: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o2755);
        header.set_uid(12);
        header.set_gid(13);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        out.append(&header, content).unwrap();
    }

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Builder::new(Vec::new());
        entries.iter().for_each(|(path, content)| entry(&mut out, path, content));
        out.into_inner().unwrap()
    }

    /// Path, owner and content of each entry.
    fn repacked(bytes: &[u8], owner: Option<(u64, u64)>, limits: Limits) -> io::Result<Vec<(String, u64, Vec<u8>)>> {
        let mut out = Builder::new(Vec::new());
        repack_added(bytes, owner, limits, &mut out)?;
        let bytes = out.into_inner()?;
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries()?.map(|entry| {
            let mut entry = entry?;
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            assert_eq!(entry.header().mode()?, 0o2755);
            Ok((entry.path()?.to_str().unwrap().to_owned(), entry.header().uid()?, content))
        });
        entries.collect()
    }

    fn read(mut from: impl Read) -> Vec<u8> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn each_compression_that_docker_knows_is_undone_and_owners_stay_unless_one_is_named() {
        let plain = archive(&[("./", b""), ("/abs/./a", b"one"), ("b", b"two")]);
        let packed = [
            plain.clone(),
            read(flate2::read::GzEncoder::new(plain.as_slice(), flate2::Compression::fast())),
            read(bzip2::read::BzEncoder::new(plain.as_slice(), bzip2::Compression::fast())),
            read(liblzma::read::XzEncoder::new(plain.as_slice(), 1)),
            zstd::encode_all(plain.as_slice(), 1).unwrap(),
        ];
        let directory = tempfile::tempdir().unwrap();
        for bytes in packed {
            let path = directory.path().join("archive");
            std::fs::write(&path, &bytes).unwrap();
            assert!(is_archive(&path).unwrap(), "{:x?}", &bytes[..6]);
            for (owner, uid) in [(None, 12), (Some((1, 2)), 1)] {
                let read = repacked(&bytes, owner, Limits::default()).unwrap();
                let expected = [("abs/a", "one"), ("b", "two")];
                let expected = expected.map(|(path, content)| (path.to_owned(), uid, content.as_bytes().to_vec()));
                assert_eq!(read, expected);
            }
            let cut = &bytes[..bytes.len() / 2];
            assert!(repacked(cut, None, Limits::default()).is_err(), "{:x?}", &bytes[..6]);
        }
        let path = directory.path().join("plain");
        for (content, what) in [
            (b"text".to_vec(), "text"),
            (zstd::encode_all(&b"text"[..], 1).unwrap(), "compressed text"),
            (vec![0; 4096], "zeros"),
            (Vec::new(), "nothing"),
        ] {
            std::fs::write(&path, content).unwrap();
            assert!(!is_archive(&path).unwrap(), "{what}");
        }
    }

    #[test]
    fn names_that_lead_out_and_archives_that_never_end_are_refused() {
        let small = Limits { unpacked_bytes: 1 << 20, entries: 2, ..Limits::default() };
        for path in ["../a", "a/../../b", ".."] {
            let error = repacked(&archive(&[(path, b"x")]), None, small).unwrap_err();
            assert!(error.to_string().contains("`..`"), "{path}: {error}");
        }
        let three = archive(&[("a", b""), ("b", b""), ("c", b"")]);
        assert!(repacked(&three, None, small).unwrap_err().to_string().contains("entries"));
        let bomb = zstd::encode_all(archive(&[("a", &vec![0; 2 << 20])]).as_slice(), 3).unwrap();
        assert!(bomb.len() < 4096 && repacked(&bomb, None, small).unwrap_err().to_string().contains("1048576 bytes"));
        assert!(repacked(&sparse("99999999999"), None, small).unwrap_err().to_string().contains("1048576 bytes"));
    }

    #[test]
    fn a_sparse_file_is_whole_again() {
        let read = repacked(&sparse("8"), None, Limits::default()).unwrap();
        assert_eq!(read, [("s".to_owned(), 12, b"\0\0a\0b\0\0\0".to_vec())]);
    }

    fn sparse(size: &str) -> Vec<u8> {
        let mut out = Builder::new(Vec::new());
        let records = [("GNU.sparse.map", &b"0,0,2,1,4,1,5,0"[..]), ("GNU.sparse.size", size.as_bytes())];
        out.append_pax_extensions(records).unwrap();
        entry(&mut out, "s", b"ab");
        out.into_inner().unwrap()
    }
}
