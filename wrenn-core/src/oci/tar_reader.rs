//! A walk through a tar archive, as a stream.
//!
//! The `tar` crate decodes the headers' fields. Its own walk splits pax records at line ends, so that an attribute with
//! such a byte in its value (a capability, an ACL) makes an archive unreadable; and it knows no sparse files of pax.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::erofs::{Device, Time};

/// Reads the entries of an archive.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Of the entry before: what is left of its content, and what follows that.
    left: u64,
    padding: u64,
}

/// An entry, before its content.
#[derive(Debug)]
pub(crate) struct TarEntry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: TarKind,
    pub(crate) mode: u16,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: Time,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TarKind {
    File(Extents),
    Directory,
    Symlink(Vec<u8>),
    Link(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// Where the bytes of the archive belong in a file of `size` bytes: offsets and lengths, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Extents {
    pub(crate) size: u64,
    pub(crate) list: Vec<(u64, u64)>,
}

impl Extents {
    /// Fails unless the list ascends within the file and takes `stored` bytes.
    fn checked(size: u64, list: Vec<(u64, u64)>, stored: u64) -> io::Result<Self> {
        let (mut end, mut sum) = (0, 0_u64);
        for &(offset, length) in &list {
            let next = offset.checked_add(length).filter(|next| offset >= end && *next <= size);
            end = next.ok_or_else(|| invalid("a sparse file's map is out of order or out of the file"))?;
            sum += length;
        }
        if sum != stored {
            return Err(invalid("a sparse file's map and content differ in length"));
        }
        Ok(Self { size, list })
    }
}

/// What precedes an entry and belongs to it.
#[derive(Default)]
struct Ahead {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Ahead {
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.pax.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_slice())
    }

    fn number(&self, key: &[u8]) -> io::Result<Option<u64>> {
        self.get(key).map(decimal).transpose()
    }
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0 }
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    pub(super) fn inner(&self) -> &R {
        &self.inner
    }

    /// The next entry. What was not read of the content of the one before is skipped.
    pub(crate) fn next(&mut self) -> io::Result<Option<TarEntry>> {
        let mut ahead = Ahead::default();
        let mut extensions = 0;
        while let Some(header) = self.header()? {
            let size = numeric(&header, SIZE)?;
            match header.entry_type() {
                EntryType::GNULongName => ahead.path = Some(without_end(self.extension(size)?)),
                EntryType::GNULongLink => ahead.link = Some(without_end(self.extension(size)?)),
                EntryType::XHeader => ahead.pax.extend(records(&self.extension(size)?)?),
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                // A volume's label.
                other if other.as_byte() == b'V' => self.content(size),
                _ => return self.entry(&header, &ahead).map(Some),
            }
            extensions += 1;
            if extensions > EXTENSIONS_MAX {
                return Err(invalid("too many extensions stand before one entry"));
            }
        }
        Ok(None)
    }

    /// Reads of the entry's content as it is stored; nothing at its end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(truncated());
        }
        self.left -= count as u64;
        Ok(count)
    }

    /// A header with a true checksum. `None` at the archive's end.
    fn header(&mut self) -> io::Result<Option<Header>> {
        self.skip()?;
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? || header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let others = || bytes[..148].iter().chain(&bytes[156..]);
        let sum: u32 = others().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        let signed: i32 = others().map(|byte| i32::from(byte.cast_signed())).sum::<i32>() + 8 * 32;
        let said = header.cksum()?;
        if said != sum && i64::from(said) != i64::from(signed) {
            return Err(invalid("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// Whether there was a block; the archive may end where one would start.
    fn block(&mut self, block: &mut [u8; 512]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(truncated()),
                count => filled += count,
            }
        }
        Ok(true)
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        if io::copy(&mut (&mut self.inner).take(rest), &mut io::sink())? < rest { Err(truncated()) } else { Ok(()) }
    }

    fn content(&mut self, size: u64) {
        self.left = size;
        self.padding = (512 - size % 512) % 512;
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_BYTES_MAX {
            return Err(invalid("an extension of an entry is longer than 1 MiB"));
        }
        self.content(size);
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok(bytes),
                count => bytes.extend(&buffer[..count]),
            }
        }
    }

    fn entry(&mut self, header: &Header, ahead: &Ahead) -> io::Result<TarEntry> {
        let stored = match ahead.number(b"size")? {
            Some(size) => size,
            None => numeric(header, SIZE)?,
        };
        let path =
            [ahead.get(b"GNU.sparse.name"), ahead.get(b"path"), ahead.path.as_deref()].into_iter().flatten().next();
        let path = path.map_or_else(|| header.path_bytes().into_owned(), <[u8]>::to_vec);
        let link = || {
            let long = ahead.get(b"linkpath").or(ahead.link.as_deref());
            long.map(<[u8]>::to_vec)
                .or_else(|| header.link_name_bytes().map(|name| name.into_owned()))
                .unwrap_or_default()
        };
        let kind = match header.entry_type() {
            EntryType::Regular if path.ends_with(b"/") => TarKind::Directory,
            EntryType::Regular | EntryType::Continuous => self.file(ahead, stored)?,
            EntryType::GNUSparse => self.gnu_sparse(header, stored)?,
            EntryType::Directory => TarKind::Directory,
            EntryType::Symlink => TarKind::Symlink(link()),
            EntryType::Link => TarKind::Link(link()),
            EntryType::Char => TarKind::CharDevice(device(header)?),
            EntryType::Block => TarKind::BlockDevice(device(header)?),
            EntryType::Fifo => TarKind::Fifo,
            other => return Err(invalid(&format!("an entry is of the kind {:?}", char::from(other.as_byte())))),
        };
        let mtime = match ahead.get(b"mtime") {
            Some(text) => time(text)?,
            None => Time { seconds: signed(&header.as_bytes()[MTIME]).unwrap_or(0), nanos: 0 },
        };
        let xattrs = ahead
            .pax
            .iter()
            .filter_map(|(key, value)| key.strip_prefix(b"SCHILY.xattr.").map(|name| (name.to_vec(), value.clone())));
        Ok(TarEntry {
            kind,
            mode: u16::try_from(numeric(header, MODE)? & 0o7777).unwrap_or(0),
            uid: ahead.number(b"uid")?.map_or_else(|| numeric(header, UID), Ok)?,
            gid: ahead.number(b"gid")?.map_or_else(|| numeric(header, GID), Ok)?,
            mtime,
            xattrs: xattrs.collect(),
            path,
        })
    }

    fn file(&mut self, ahead: &Ahead, stored: u64) -> io::Result<TarKind> {
        self.content(stored);
        let size = match ahead.number(b"GNU.sparse.realsize")? {
            Some(size) => Some(size),
            None => ahead.number(b"GNU.sparse.size")?,
        };
        let Some(size) = size else {
            let list = if stored == 0 { Vec::new() } else { vec![(0, stored)] };
            return Ok(TarKind::File(Extents { size: stored, list }));
        };
        let list =
            if ahead.get(b"GNU.sparse.major") == Some(b"1") { self.map_in_content()? } else { map_in_records(ahead)? };
        Extents::checked(size, list, self.left).map(TarKind::File)
    }

    /// Of version 1.0: numbers, a line each, before the content and padded to a block.
    fn map_in_content(&mut self) -> io::Result<Vec<(u64, u64)>> {
        let mut used = 0;
        let mut number = || {
            let mut digits = Vec::new();
            loop {
                let mut byte = [0];
                if self.read(&mut byte)? == 0 {
                    return Err(truncated());
                }
                used += 1;
                match byte {
                    [b'\n'] => return decimal(&digits),
                    [byte] if digits.len() < 20 => digits.push(byte),
                    _ => return Err(invalid("a sparse file's map has a number that is too long")),
                }
            }
        };
        let count = number()?;
        if count > SPARSE_MAX {
            return Err(invalid("a sparse file's map is too long"));
        }
        let list = (0..count).map(|_| Ok((number()?, number()?))).collect::<io::Result<_>>()?;
        let mut rest = vec![0; (512 - used % 512) % 512];
        let mut filled = 0;
        while filled < rest.len() {
            match self.read(&mut rest[filled..])? {
                0 => return Err(truncated()),
                count => filled += count,
            }
        }
        Ok(list)
    }

    fn gnu_sparse(&mut self, header: &Header, stored: u64) -> io::Result<TarKind> {
        let gnu = header.as_gnu().ok_or_else(|| invalid("a sparse file's header is not GNU's"))?;
        let mut list = Vec::new();
        for extent in gnu.sparse.iter().filter(|extent| !extent.is_empty()) {
            list.push((extent.offset()?, extent.length()?));
        }
        let mut more = gnu.is_extended();
        while more {
            let mut next = GnuExtSparseHeader::new();
            if !self.block(next.as_mut_bytes())? || list.len() as u64 > SPARSE_MAX {
                return Err(truncated());
            }
            for extent in next.sparse().iter().filter(|extent| !extent.is_empty()) {
                list.push((extent.offset()?, extent.length()?));
            }
            more = next.is_extended();
        }
        self.content(stored);
        Extents::checked(gnu.real_size()?, list, stored).map(TarKind::File)
    }
}

/// Of versions 0.0 and 0.1.
fn map_in_records(ahead: &Ahead) -> io::Result<Vec<(u64, u64)>> {
    let numbers: Vec<u64> = match ahead.get(b"GNU.sparse.map") {
        Some(b"") => Vec::new(),
        Some(map) => map.split(|byte| *byte == b',').map(decimal).collect::<io::Result<_>>()?,
        None => {
            let of_map = |key: &[u8]| key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes";
            let records = ahead.pax.iter().filter(|(key, _)| of_map(key));
            records.map(|(_, value)| decimal(value)).collect::<io::Result<_>>()?
        }
    };
    if numbers.len() % 2 == 1 {
        return Err(invalid("a sparse file's map ends within a pair"));
    }
    Ok(numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect())
}

/// `LENGTH KEY=VALUE\n`, where the length counts all of that.
fn records(mut bytes: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    while !bytes.is_empty() && bytes[0] != 0 {
        let malformed = || invalid("a pax record is malformed");
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| malformed())?;
        if length <= space + 1 || length > bytes.len() {
            return Err(malformed());
        }
        let record = bytes[space + 1..length].strip_suffix(b"\n").ok_or_else(malformed)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(records)
}

fn decimal(text: &[u8]) -> io::Result<u64> {
    let digits = Some(text).filter(|text| !text.is_empty() && text.iter().all(u8::is_ascii_digit));
    let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| invalid("a number is malformed"))
}

/// Seconds, which may be negative and have a fraction.
fn time(text: &[u8]) -> io::Result<Time> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds =
        i64::try_from(decimal(parts.next().unwrap_or_default())?).map_err(|_| invalid("a time is too large"))?;
    let mut fraction = parts.next().unwrap_or_default().to_vec();
    fraction.resize(9, b'0');
    let nanos = u32::try_from(decimal(&fraction)?).map_err(|_| invalid("a time is malformed"))?;
    Ok(match (negative, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time { seconds: -seconds, nanos },
        (true, _) => Time { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

fn device(header: &Header) -> io::Result<Device> {
    let number = |field, max| {
        let number = numeric(header, field)?;
        u32::try_from(number)
            .ok()
            .filter(|number| *number <= max)
            .ok_or_else(|| invalid("a device's numbers are too large"))
    };
    Ok(Device { major: number(MAJOR, 0xfff)?, minor: number(MINOR, 0xf_ffff)? })
}

fn numeric(header: &Header, field: Range<usize>) -> io::Result<u64> {
    let number = signed(&header.as_bytes()[field]).and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| invalid("a number in a header is malformed"))
}

/// A field: octal digits, or GNU's binary form with the first bit set. One that is empty is zero, which the `tar` crate
/// does not have it be.
fn signed(field: &[u8]) -> Option<i64> {
    if let Some((first @ 0x80.., rest)) = field.split_first() {
        let negative = first & 0x40 != 0;
        let head = i64::from(first & 0x3f) | if negative { !0x3f } else { 0 };
        let number =
            rest.iter().fold(i128::from(head), |sum, byte| sum.saturating_mul(256).saturating_add(i128::from(*byte)));
        return i64::try_from(number).ok().filter(|number| (*number < 0) == negative);
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let digits = field.iter().skip_while(|byte| blank(byte)).take_while(|byte| !blank(byte));
    digits.copied().try_fold(0_i64, |sum, byte| {
        let digit = i64::from(byte.checked_sub(b'0').filter(|digit| *digit < 8)?);
        sum.checked_mul(8)?.checked_add(digit)
    })
}

/// GNU ends its long names with a zero.
fn without_end(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends early")
}

const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
const EXTENSIONS_MAX: u32 = 64;
const SPARSE_MAX: u64 = 1 << 20;
