use std::{collections::BTreeMap, path::Path};

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
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { path: path.to_string_lossy().into_owned(), name, kind: "file", metadata }
    }
}
