//! Records of paused sandboxes, as many as a busy host has.

use std::path::{Path, PathBuf};

use serde_json::json;

pub(crate) const COUNT: usize = 1000;

/// Writes so many records into a data directory that has been opened before, each of them naming `generation`.
pub(crate) fn write(data_dir: &Path, generation: &str) -> anyhow::Result<Vec<PathBuf>> {
    let one = |number: usize| {
        let id = format!("sb{number:016x}");
        let record = json!({
            "version": 1, "id": id, "template": "base", "vcpus": 1, "memory_mib": 512,
            "envs": { "LANG": "C.UTF-8" }, "labels": { "owner": "bench", "number": number.to_string() },
            "lifetime": null, "created_at_ms": 1_700_000_000_000_u64,
            "generation": generation, "paused_at_ms": 1_700_000_001_000_u64, "stored_bytes": 4096,
        });
        let path = data_dir.join("sandboxes").join(format!("{id}.json"));
        std::fs::write(&path, serde_json::to_vec_pretty(&record)?)?;
        // A sandbox that was paused has one.
        std::fs::write(data_dir.join("locks").join(id), "")?;
        Ok(path)
    };
    (0..COUNT).map(one).collect()
}
