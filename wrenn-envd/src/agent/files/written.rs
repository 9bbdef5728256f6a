use std::{collections::BTreeMap, path::Path};

use crate::agent::disk::spelling::told;

/// One written file, in the answer.
#[derive(Debug, serde::Serialize)]
pub(super) struct Written {
    path: String,
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

impl Written {
    pub(super) fn file(path: &Path, metadata: BTreeMap<String, String>) -> Self {
        let name = told(path.file_name().unwrap_or_default());
        Self { path: told(path), name, kind: "file", metadata }
    }
}
