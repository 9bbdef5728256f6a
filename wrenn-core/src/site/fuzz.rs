//! What the repository's fuzzer calls: it takes any bytes, and panics where a promise is broken.

use std::fmt::Debug;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::site::record;
use crate::site::records::{PausedRecord, StepRecord, TemplateRecord};

/// The files of paused sandboxes, of templates and of steps: any bytes are a record that encodes and decodes to the same record, or
/// they are refused.
///
/// # Panics
/// A promise is broken.
pub fn records(bytes: &[u8]) {
    check::<PausedRecord>(bytes);
    check::<TemplateRecord>(bytes);
    check::<StepRecord>(bytes);
}

fn check<T: Debug + PartialEq + Serialize + DeserializeOwned>(bytes: &[u8]) {
    let path = Path::new("fuzzed.json");
    let Ok(record) = record::decode::<T>(path, bytes) else { return };
    let encoded = record::encode(&record).unwrap_or_else(|error| panic!("{record:?} does not encode: {error:?}"));
    match record::decode::<T>(path, &encoded) {
        Ok(decoded) => assert_eq!(decoded, record),
        Err(error) => panic!("{record:?} does not decode again: {error:?}"),
    }
}
