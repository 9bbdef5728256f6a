//! How much disk generations take.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::{
    error::{Error, Result},
    id::GenerationId,
    reach::Reach,
    root::Root,
};

/// The bytes that the file system has allocated for a generation's directory.
pub(crate) fn of_one(root: &Root, id: GenerationId) -> Result<u64> {
    let dir = root.dir(id);
    let inspect = |path: PathBuf| match root.disk.open(&path).and_then(|file| file.metadata()) {
        Ok(metadata) => Ok(metadata.blocks()),
        Err(source) => Err(Error::io("inspect", &path, source)),
    };
    let names = root.list(&dir)?;
    let blocks = names.into_iter().map(|name| dir.join(name)).chain([dir.clone()]).map(inspect);
    Ok(blocks.sum::<Result<u64>>()? * STAT_BLOCK_BYTES)
}

/// The bytes of all that some generations reach and others do not, each counted once.
pub(crate) fn reached(root: &Root, ids: &[GenerationId], without: &[GenerationId]) -> Result<u64> {
    let reach = |ids: &[GenerationId]| -> HashSet<GenerationId> {
        ids.iter()
            .flat_map(|id| Reach::of(root, *id).map_or_else(|_| vec![*id], |reach| reach.generations().collect()))
            .collect()
    };
    let (all, without) = (reach(ids), reach(without));
    let size = |id: &GenerationId| match of_one(root, *id) {
        Err(error) if is_absent(&error) => Ok(0),
        size => size,
    };
    all.difference(&without).map(size).sum()
}

fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// The unit of `st_blocks`, whatever the file system's own block is (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;
