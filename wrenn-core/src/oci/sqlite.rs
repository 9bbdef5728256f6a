//! The rows of a table in a file of SQLite, read without SQLite: <https://www.sqlite.org/fileformat2.html>
//!
//! The file is a stranger's. A page of a tree is read once at most, so that no circle has no end; every length is held to the
//! file's, and so are all rows together.

use std::collections::BTreeSet;

/// Why a file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no database of SQLite, or a damaged one: {0}")]
pub(super) struct Damaged(&'static str);

/// A value of a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Integer(i64),
    Text(&'a [u8]),
    Blob(&'a [u8]),
    /// Of a kind that nothing here asks for.
    Other,
}

/// A file of SQLite.
#[derive(Debug)]
pub(super) struct Database<'a> {
    bytes: &'a [u8],
    page_bytes: usize,
    /// Of a page, without what extensions of SQLite have for their own.
    usable: usize,
}

type Result<T, E = Damaged> = std::result::Result<T, E>;

impl<'a> Database<'a> {
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self> {
        if !bytes.starts_with(MAGIC) {
            return Err(Damaged("its beginning is not SQLite's"));
        }
        let page_bytes = match number::<2>(bytes, 16)? {
            1 => 65536,
            size @ 512..=32768 if size.is_power_of_two() => size,
            _ => return Err(Damaged("the size of its pages")),
        };
        let reserved = usize::from(*bytes.get(20).ok_or(SHORT)?);
        let usable = page_bytes.checked_sub(reserved).filter(|usable| *usable >= 480).ok_or(Damaged("its pages"))?;
        Ok(Self { bytes, page_bytes, usable })
    }

    /// Gives each row of a table to `take`, until that returns `false`. The rows come as they are stored.
    pub(super) fn rows(&self, table: &str, mut take: impl FnMut(&[Value<'_>]) -> bool) -> Result<()> {
        let mut root = None;
        self.walk(1, &mut |row| {
            if let [Value::Text(b"table"), Value::Text(name), _, Value::Integer(page), ..] = row
                && *name == table.as_bytes()
            {
                root = usize::try_from(*page).ok();
            }
            root.is_none()
        })?;
        self.walk(root.ok_or(Damaged("it has no such table"))?, &mut take)
    }

    /// The tree of a table: its leaves have the rows.
    fn walk(&self, root: usize, take: &mut dyn FnMut(&[Value<'_>]) -> bool) -> Result<()> {
        let (mut left, mut seen, mut room) = (vec![root], BTreeSet::new(), self.bytes.len());
        while let Some(number) = left.pop() {
            if !seen.insert(number) {
                return Err(Damaged("its pages lead round in a circle"));
            }
            let page = self.page(number)?;
            // The file's own header is in the first page.
            let header = if number == 1 { 100 } else { 0 };
            let cells = self::number::<2>(page, header + 3)?;
            let cell = |from: usize, index: usize| self::number::<2>(page, from + 2 * index);
            match page.get(header).ok_or(SHORT)? {
                INTERIOR => {
                    left.push(self::number::<4>(page, header + 8)?);
                    for index in (0..cells).rev() {
                        left.push(self::number::<4>(page, cell(header + 12, index)?)?);
                    }
                }
                LEAF => {
                    for index in 0..cells {
                        let payload = self.payload(page, cell(header + 8, index)?, room)?;
                        room -= payload.len();
                        if !take(&values(&payload)?) {
                            return Ok(());
                        }
                    }
                }
                _ => return Err(Damaged("a page is of no table")),
            }
        }
        Ok(())
    }

    fn page(&self, number: usize) -> Result<&'a [u8]> {
        let start = number.checked_sub(1).and_then(|index| index.checked_mul(self.page_bytes));
        let page = start.and_then(|start| self.bytes.get(start..start.checked_add(self.page_bytes)?));
        page.and_then(|page| page.get(..self.usable)).ok_or(SHORT)
    }

    /// What a cell has, with what did not fit into its page: so many bytes at most.
    fn payload(&self, page: &[u8], at: usize, bytes_max: usize) -> Result<Vec<u8>> {
        let mut cell = page.get(at..).ok_or(SHORT)?;
        let length = usize::try_from(varint(&mut cell)?).map_err(|_| SHORT)?;
        // The row's number.
        varint(&mut cell)?;
        if length > bytes_max {
            return Err(SHORT);
        }
        let most = self.usable - 35;
        if length <= most {
            return Ok(cell.get(..length).ok_or(SHORT)?.to_vec());
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let local = least + (length - least) % (self.usable - 4);
        let local = if local <= most { local } else { least };
        let mut payload = cell.get(..local).ok_or(SHORT)?.to_vec();
        let mut next = number::<4>(cell, local)?;
        // Each page of the chain has some of it, so that it ends.
        while payload.len() < length {
            let page = self.page(next)?;
            next = number::<4>(page, 0)?;
            let rest = (length - payload.len()).min(self.usable - 4);
            payload.extend(page.get(4..4 + rest).ok_or(SHORT)?);
        }
        Ok(payload)
    }
}

/// The values of a record: first the kind of each, then their bytes.
fn values(record: &[u8]) -> Result<Vec<Value<'_>>> {
    let mut kinds = record;
    let header = usize::try_from(varint(&mut kinds)?).map_err(|_| SHORT)?;
    let mut body = record.get(header..).ok_or(SHORT)?;
    let read = record.len() - kinds.len();
    let mut kinds = record.get(read..header).ok_or(SHORT)?;
    let mut values = Vec::new();
    while !kinds.is_empty() {
        let kind = varint(&mut kinds)?;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return Err(Damaged("a value is of no kind")),
            _ => (kind - 12) / 2,
        };
        let length = usize::try_from(length).ok().filter(|length| *length <= body.len()).ok_or(SHORT)?;
        let (value, rest) = body.split_at(length);
        body = rest;
        values.push(match kind {
            1..=6 => Value::Integer(signed(value)),
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            kind if kind >= 12 && kind % 2 == 0 => Value::Blob(value),
            kind if kind >= 12 => Value::Text(value),
            _ => Value::Other,
        });
    }
    Ok(values)
}

/// Up to eight bytes, the highest first.
fn signed(bytes: &[u8]) -> i64 {
    let start = if bytes.first().is_some_and(|byte| byte & 0x80 != 0) { -1 } else { 0 };
    bytes.iter().fold(start, |value, byte| value << 8 | i64::from(*byte))
}

/// One to nine bytes, the highest first: seven bits of each, and eight of the ninth.
fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for index in 0..9 {
        let (byte, rest) = bytes.split_first().ok_or(SHORT)?;
        *bytes = rest;
        if index == 8 {
            return Ok(value << 8 | u64::from(*byte));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Ok(value)
}

/// Of so many bytes, the highest first.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<usize> {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk::<N>()).ok_or(SHORT)?;
    Ok(bytes.iter().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

const SHORT: Damaged = Damaged("it is shorter than it says");
const MAGIC: &[u8] = b"SQLite format 3\0";
const INTERIOR: &u8 = &5;
const LEAF: &u8 = &13;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What SQLite itself has written: rows whose second value is longer and longer, without the first; `None` where there is no
    /// SQLite.
    fn written(page_bytes: usize, rows: usize) -> Option<Vec<u8>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let script = "import sqlite3, sys\n\
                      db = sqlite3.connect(sys.argv[1])\n\
                      db.execute('PRAGMA page_size = ' + sys.argv[2])\n\
                      db.execute('CREATE TABLE other (x)')\n\
                      db.execute('CREATE TABLE wanted (n INTEGER, blob BLOB)')\n\
                      for n in range(int(sys.argv[3])): db.execute('INSERT INTO wanted VALUES (?, ?)', (n * -77777, bytes([n % 251]) * (n * 7)))\n\
                      db.execute('DELETE FROM wanted WHERE n = 0')\n\
                      db.commit()\n";
        let run = Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .args([page_bytes, rows].map(|n| n.to_string()))
            .status();
        if !run.is_ok_and(|status| status.success()) {
            println!("skipped: what SQLite itself has written is not read: python3 has none");
            return None;
        }
        Some(std::fs::read(path).unwrap())
    }

    #[test]
    fn what_sqlite_itself_has_written_is_read() {
        for page_bytes in [512, 4096, 65536] {
            let Some(bytes) = written(page_bytes, 1500) else { return };
            let mut number = 0;
            let rows = Database::open(&bytes).unwrap().rows("wanted", |row| {
                number += 1;
                let blob = vec![u8::try_from(number % 251).unwrap(); usize::try_from(number * 7).unwrap()];
                assert_eq!(row, [Value::Integer(number * -77777), Value::Blob(&blob)]);
                true
            });
            assert_eq!((rows, number), (Ok(()), 1499), "pages of {page_bytes}");
            let none = Database::open(&bytes).unwrap().rows("absent", |_| true).unwrap_err();
            assert!(none.to_string().contains("no such table"));
        }
    }

    #[test]
    fn what_is_damaged_is_refused_or_read_and_always_ends() {
        assert!(Database::open(b"SQLite").is_err() && Database::open(&[0; 4096]).is_err());
        let Some(bytes) = written(512, 150) else { return };
        let read = |bytes: &[u8]| {
            let mut rows = 0;
            let read = Database::open(bytes).and_then(|database| {
                database.rows("wanted", |_| {
                    rows += 1;
                    rows < 10_000
                })
            });
            assert!(rows <= 10_000);
            read
        };
        let mut refused = 0;
        for at in (16..bytes.len()).step_by(509).chain(16..600) {
            for value in [0, 5, 13, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                refused += usize::from(read(&damaged).is_err());
            }
        }
        assert!(refused > 50, "{refused}");
        // A page whose cells all lead to one row, which is nearly as long as the file.
        let mut bomb = vec![0; 512];
        bomb[..MAGIC.len()].copy_from_slice(MAGIC);
        bomb[16..18].copy_from_slice(&[2, 0]);
        bomb[100..105].copy_from_slice(&[13, 0, 0, 0, 100]);
        (0..100).for_each(|cell| bomb[108 + 2 * cell..110 + 2 * cell].copy_from_slice(&[1, 0x40]));
        bomb[0x140..0x143].copy_from_slice(&[60, 1, 2]);
        assert_eq!(read(&bomb), Err(SHORT));
        for length in [100, 512, 5000, bytes.len() / 2] {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
    }
}
