//! Records: small JSON files that are replaced as a whole, and that a program finds when it opens the data directory.
//!
//! Each has a `version`, which is 1; a record without one is of version 1 as well. A field that a later version adds
//! has a default, so that records of an earlier one load; a change that a default cannot bridge has another version,
//! which an earlier program refuses by number.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Whether a record may take the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The record replaces any former one.
    Any,
    /// The record is written only where there is none.
    Free,
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    record: &'a T,
}

#[derive(Deserialize)]
struct Version {
    #[serde(default = "first_version")]
    version: u32,
}

/// Writes `value` so that a crash leaves the old file or the new one.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = encode(value)?;
    put(path, &bytes, Place::Any).map_err(Error::io("write", path))
}

/// Writes `value` where there is no record, and says whether there was none.
pub(crate) fn write_new(path: &Path, value: &impl Serialize) -> Result<bool> {
    let bytes = encode(value)?;
    match put(path, &bytes, Place::Free) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io("write", path)(error)),
    }
}

/// A record as its file has it.
pub(super) fn encode(record: &impl Serialize) -> Result<Vec<u8>> {
    let versioned = Versioned { version: VERSION, record };
    serde_json::to_vec_pretty(&versioned).map_err(|e| Error::failed("encode a record")(e.into()))
}

fn put(path: &Path, bytes: &[u8], place: Place) -> io::Result<()> {
    let directory = directory_of(path);
    let mut file = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    match place {
        Place::Any => file.persist(path)?,
        Place::Free => file.persist_noclobber(path)?,
    };
    sync(directory)
}

/// Reads a record; `None` where there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    decode(path, &bytes).map(Some)
}

/// What the bytes of the file at `path` say.
pub(super) fn decode<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let what = || format!("understand {}: it is not a record of this version of wrenn", path.display());
    let failed = |error: serde_json::Error| Error::failed(what())(error.into());
    let Version { version } = serde_json::from_slice(bytes).map_err(failed)?;
    if version != VERSION {
        let text = format!("it has version {version}, and this wrenn knows {VERSION}");
        return Err(Error::failed(what())(text.into()));
    }
    serde_json::from_slice(bytes).map_err(failed)
}

/// Removes a record for good, and reports whether there was one. What it named may be deleted afterwards: no crash
/// brings the record back.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    let removed = fs::remove_file(path).and_then(|()| sync(directory_of(path)));
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}

/// The stems of the records in `directory`, without what a crash left half-written. Sorted.
pub(crate) fn stems(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    let mut stems = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("list", directory))?.file_name();
        if let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".json")) {
            stems.push(stem.to_owned());
        }
    }
    stems.sort();
    Ok(stems)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn first_version() -> u32 {
    1
}

/// For fields whose types have a text of their own: `#[serde(with = "crate::record::text")]`.
pub(crate) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

const VERSION: u32 = 1;
pub(super) const TEMPORARY_PREFIX: &str = ".tmp-";

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Number {
        number: u32,
    }

    #[test]
    fn a_record_reads_back_and_is_listed_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.json");
        assert_eq!(read::<Number>(&path).unwrap(), None);
        write(&path, &Number { number: 7 }).unwrap();
        write(&path, &Number { number: 8 }).unwrap();
        assert_eq!(read(&path).unwrap(), Some(Number { number: 8 }));
        assert!(fs::read_to_string(&path).unwrap().contains("\"version\": 1"));
        assert_eq!(stems(dir.path()).unwrap(), ["one"]);
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }

    #[test]
    fn a_new_record_takes_no_others_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.json");
        assert!(write_new(&path, &Number { number: 7 }).unwrap());
        assert!(!write_new(&path, &Number { number: 8 }).unwrap());
        assert_eq!(read(&path).unwrap(), Some(Number { number: 7 }));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file stays");
    }

    #[test]
    fn a_torn_record_and_one_of_a_later_version_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("torn.json");
        for text in ["{\"number\": ", "{\"version\": 2, \"number\": 7}"] {
            fs::write(&path, text).unwrap();
            let error = read::<Number>(&path).unwrap_err();
            assert!(error.to_string().contains("torn.json"), "{error}");
        }
        fs::write(&path, "{\"number\": 7}").unwrap();
        assert_eq!(read(&path).unwrap(), Some(Number { number: 7 }));
    }
}
