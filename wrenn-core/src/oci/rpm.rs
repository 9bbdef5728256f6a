//! The packages of an RPM database that is a file of SQLite: each row of the table `Packages` has a package's header.
//!
//! ```text
//! entries u32 │ bytes u32 │ entry: tag u32, kind u32, offset u32, count u32 │ … │ what the entries lead to
//! ```
//!
//! All numbers have their highest byte first. <https://rpm-software-management.github.io/rpm/manual/format_header.html>

use std::collections::BTreeMap;

use crate::oci::package::{Package, PackageKind};
use crate::oci::package_database::{LICENSE_BYTES_MAX, Malformed, NAME_BYTES_MAX, is_text};
use crate::oci::sqlite::{Damaged, Database, Value};

/// Gives what each row is to `take`, until that returns `false`. The keys of signers, which are rows too, are left out.
pub(super) fn packages(bytes: &[u8], mut take: impl FnMut(Result<Package, Malformed>) -> bool) -> Result<(), Damaged> {
    Database::open(bytes)?.rows("Packages", |row| {
        // RPM writes the number of the row before it.
        let header = row.iter().find_map(|value| if let Value::Blob(blob) = value { Some(*blob) } else { None });
        match header.and_then(package) {
            Some(package) if package.name == KEY => true,
            Some(package) => take(Ok(package)),
            None => take(Err(Malformed)),
        }
    })
}

fn package(header: &[u8]) -> Option<Package> {
    let header = Header::parse(header)?;
    let text = |tag, bytes_max| header.text(tag).filter(|text| is_text(text, bytes_max)).map(str::to_owned);
    let name = text(NAME, NAME_BYTES_MAX)?;
    let version = format!("{}-{}", text(VERSION, NAME_BYTES_MAX)?, text(RELEASE, NAME_BYTES_MAX)?);
    let version = match header.number(EPOCH) {
        Some(epoch) => format!("{epoch}:{version}"),
        None => version,
    };
    let architecture = text(ARCHITECTURE, NAME_BYTES_MAX);
    Some(Package { name, version, kind: PackageKind::Rpm, architecture, license: text(LICENSE, LICENSE_BYTES_MAX) })
}

/// Where the values of those tags are that are asked for.
struct Header<'a> {
    entries: BTreeMap<u32, (u32, usize)>,
    store: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (count, length) = (number(bytes, 0)?, number(bytes, 4)?);
        let index_bytes = usize::try_from(count).ok()?.checked_mul(16)?;
        let index = bytes.get(8..8_usize.checked_add(index_bytes)?)?;
        let store = bytes.get(8 + index_bytes..)?.get(..usize::try_from(length).ok()?)?;
        let mut entries = BTreeMap::new();
        for entry in index.chunks_exact(16) {
            let tag = number(entry, 0)?;
            if TAGS.contains(&tag) {
                entries.insert(tag, (number(entry, 4)?, usize::try_from(number(entry, 8)?).ok()?));
            }
        }
        Some(Self { entries, store })
    }

    /// A text, or the first of several.
    fn text(&self, tag: u32) -> Option<&'a str> {
        let (kind, offset) = *self.entries.get(&tag)?;
        let bytes = self.store.get(offset..).filter(|_| TEXTS.contains(&kind))?;
        std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
    }

    fn number(&self, tag: u32) -> Option<u32> {
        let (kind, offset) = *self.entries.get(&tag)?;
        number(self.store, offset).filter(|_| kind == INT32)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
}

const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const LICENSE: u32 = 1014;
const ARCHITECTURE: u32 = 1022;
const TAGS: [u32; 6] = [NAME, VERSION, RELEASE, EPOCH, LICENSE, ARCHITECTURE];
const INT32: u32 = 4;
/// One text, several, and one of which there are translations.
const TEXTS: [u32; 3] = [6, 8, 9];
/// What RPM calls a signer's key.
const KEY: &str = "gpg-pubkey";

#[cfg(test)]
mod tests {
    use super::*;

    /// The highest byte first.
    fn bytes(number: u32) -> [u8; 4] {
        let mut bytes = number.to_le_bytes();
        bytes.reverse();
        bytes
    }

    fn header(entries: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let (mut index, mut store) = (Vec::new(), Vec::new());
        for (tag, kind, value) in entries {
            let offset = u32::try_from(store.len()).unwrap();
            index.extend([*tag, *kind, offset, 1].into_iter().flat_map(bytes));
            store.extend_from_slice(value);
        }
        let lengths = [entries.len(), store.len()].map(|length| bytes(u32::try_from(length).unwrap()));
        [lengths.concat(), index, store].concat()
    }

    #[test]
    fn a_header_is_read_and_one_that_leads_out_is_none() {
        let entries: [(u32, u32, &[u8]); 6] = [
            (NAME, 6, b"bash\0"),
            (VERSION, 6, b"5.2\0"),
            (RELEASE, 6, b"1.fc40\0"),
            (EPOCH, INT32, &[0, 0, 1, 0]),
            (9999, 7, &[0xff; 40]),
            (LICENSE, 9, b"GPL-3.0-or-later\0andere\0"),
        ];
        let whole = header(&entries);
        let bash = package(&whole).unwrap();
        assert_eq!((bash.to_string(), bash.architecture), ("bash 256:5.2-1.fc40".to_owned(), None));
        assert_eq!(bash.license.as_deref(), Some("GPL-3.0-or-later"));
        for length in 0..whole.len() {
            assert_eq!(package(&whole[..length]), None, "{length}");
        }
        assert_eq!(package(&header(&entries[1..])), None, "it has no name");
        assert_eq!(package(&header(&[(NAME, 6, b"a\nb\0"), entries[1], entries[2]])), None);
        assert_eq!(package(&header(&[(NAME, INT32, b"bash\0"), entries[1], entries[2]])), None);
        assert_eq!(package(&[0xff; 64]), None);
    }
}
