//! Small JSON files, replaced whole: what a program finds again when it opens the data directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Writes `value` so that a crash leaves the old file or the new one.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::failed("encode a record")(e.into()))?;
    replace(path, directory, &bytes).map_err(Error::io("write", path))
}

fn replace(path: &Path, directory: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

/// Reads a record; `None` where there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let what = || format!("understand {}: it is not a record of this version of wrenn", path.display());
    serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::failed(what())(e.into()))
}

/// Removes a record, and reports whether there was one.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}

/// The stems of the records in `directory`, without what a crash left half-written.
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

const TEMPORARY_PREFIX: &str = ".tmp-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_is_listed_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.json");
        assert_eq!(read::<u32>(&path).unwrap(), None);
        write(&path, &7).unwrap();
        write(&path, &8).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), Some(8));
        assert_eq!(stems(dir.path()).unwrap(), ["one"]);
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }

    #[test]
    fn a_torn_record_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("torn.json");
        fs::write(&path, "{\"a\": ").unwrap();
        let error = read::<serde_json::Value>(&path).unwrap_err();
        assert!(error.to_string().contains("torn.json"), "{error}");
    }
}
