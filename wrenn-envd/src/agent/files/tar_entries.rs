//! The entries of a tar archive, read as a stream.
//!
//! The `tar` crate decodes headers. Extensions are read here: the crate's own reading of pax records breaks at a line end in a
//! value, which a capability may have, and takes them at any length.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
};

use rustix::fs::{Timespec, makedev};
use tar::{Archive, EntryType, Header};

use crate::agent::api_error::ApiError;

/// An entry, before its content.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Timespec,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink(PathBuf),
    /// Another name of a file that came before, or that is there.
    Link(PathBuf),
    CharDevice(u64),
    BlockDevice(u64),
    Fifo,
}

/// Reads an archive to its end, and gives each entry with its content to `take`.
pub(super) fn each(
    archive: impl Read,
    mut take: impl FnMut(&Entry, &mut dyn Read) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let mut archive = Archive::new(archive);
    let mut ahead = Ahead::default();
    for entry in archive.entries().map_err(|error| malformed(&error))?.raw(true) {
        let mut entry = entry.map_err(|error| malformed(&error))?;
        match entry.header().entry_type() {
            EntryType::GNULongName => ahead.path = Some(text(&mut entry)?),
            EntryType::GNULongLink => ahead.link = Some(text(&mut entry)?),
            EntryType::XHeader => ahead.records(&extension(&mut entry)?)?,
            EntryType::XGlobalHeader => {}
            _ => {
                let read = std::mem::take(&mut ahead).entry(entry.header()).map_err(|error| malformed(&error))?;
                take(&read, &mut entry)?;
            }
        }
    }
    // What follows the archive is read too, so that its sender is not kept from ending.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop).map_err(|error| malformed(&error))
}

/// What precedes an entry and belongs to it.
#[derive(Debug, Default)]
struct Ahead {
    path: Option<PathBuf>,
    link: Option<PathBuf>,
    uid: Option<u64>,
    gid: Option<u64>,
    size: Option<u64>,
    modified: Option<Timespec>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Ahead {
    /// Takes the records of a pax header: `LENGTH KEY=VALUE` and a line end, where the length is that of all of it.
    fn records(&mut self, mut bytes: &[u8]) -> Result<(), ApiError> {
        while !bytes.is_empty() {
            let (record, rest) = record(bytes).ok_or_else(|| ApiError::bad_request("a pax record is malformed"))?;
            bytes = rest;
            let Some(equals) = record.iter().position(|byte| *byte == b'=') else {
                return Err(ApiError::bad_request("a pax record has no value"));
            };
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let number = || {
                let number = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                number.ok_or_else(|| ApiError::bad_request("a number of a pax record is malformed"))
            };
            match key {
                b"path" => self.path = Some(path(value)),
                b"linkpath" => self.link = Some(path(value)),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"size" => self.size = Some(number()?),
                b"mtime" => self.modified = Some(time(value)?),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(ApiError::bad_request("sparse files of GNU's are not unpacked"));
                }
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    fn entry(self, header: &Header) -> io::Result<Entry> {
        let path = self.path.unwrap_or_else(|| path(&header.path_bytes()));
        let fault = |what: String| io::Error::other(format!("{}: {what}", path.display()));
        let link = || {
            let target = self.link.clone().or_else(|| header.link_name_bytes().map(|target| self::path(&target)));
            target.ok_or_else(|| fault("a link without a target".to_owned()))
        };
        let device = || {
            let part = |part: Option<u32>| part.ok_or_else(|| fault("a device without numbers".to_owned()));
            Ok::<_, io::Error>(makedev(part(header.device_major()?)?, part(header.device_minor()?)?))
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link()?),
            EntryType::Link => Kind::Link(link()?),
            EntryType::Char => Kind::CharDevice(device()?),
            EntryType::Block => Kind::BlockDevice(device()?),
            EntryType::Fifo => Kind::Fifo,
            other => {
                return Err(fault(format!("an entry of the type {:?} is not unpacked", char::from(other.as_byte()))));
            }
        };
        if self.size.is_some_and(|size| kind == Kind::File && header.entry_size().ok() != Some(size)) {
            return Err(fault("its length is in a pax record alone, which is not understood".to_owned()));
        }
        let id = |id: u64| u32::try_from(id).map_err(|_| fault(format!("no user and no group has the number {id}")));
        let header_time = Timespec { tv_sec: i64::try_from(header.mtime()?).unwrap_or(i64::MAX), tv_nsec: 0 };
        Ok(Entry {
            kind,
            mode: header.mode()? & 0o7777,
            uid: id(self.uid.map_or_else(|| header.uid(), Ok)?)?,
            gid: id(self.gid.map_or_else(|| header.gid(), Ok)?)?,
            modified: self.modified.unwrap_or(header_time),
            xattrs: self.xattrs,
            path,
        })
    }
}

/// The first record without its length and its line end, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    Some((record.get(space + 1..)?.strip_suffix(b"\n")?, rest))
}

/// Seconds, with a fraction that is passed over.
fn time(value: &[u8]) -> Result<Timespec, ApiError> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let seconds = text.split('.').next().and_then(|seconds| seconds.parse().ok());
    let tv_sec = seconds.ok_or_else(|| ApiError::bad_request(format!("{text:?} is no time")))?;
    Ok(Timespec { tv_sec, tv_nsec: 0 })
}

/// A name of GNU's, which ends with a zero.
fn text(entry: &mut tar::Entry<'_, impl Read>) -> Result<PathBuf, ApiError> {
    let bytes = extension(entry)?;
    Ok(path(bytes.split(|byte| *byte == 0).next().unwrap_or_default()))
}

fn extension(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>, ApiError> {
    if entry.size() > EXTENSION_BYTES_MAX {
        return Err(ApiError::bad_request(format!("an extension has {} bytes", entry.size())));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|error| malformed(&error))?;
    Ok(bytes)
}

fn path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

fn malformed(error: &io::Error) -> ApiError {
    ApiError::bad_request(format!("the archive: {error}"))
}

/// Names have 4,096 bytes at most, and a file's attributes 64 KiB.
const EXTENSION_BYTES_MAX: u64 = 256 << 10;
