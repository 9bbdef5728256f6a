//! Reading the headers of generations, in full or in part.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    chunks::ChunkTable,
    damage::Damage,
    error::{Error, Result},
    format::header::{FixedPart, Header},
    id::GenerationId,
    root::Root,
    space::Space,
};

/// What a manifest knows of a header file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeaderSeal {
    pub(crate) len: u64,
    pub(crate) crc: u32,
}

/// Reads and checks the header file that a manifest names.
pub(crate) fn read_header(root: &Root, generation: GenerationId, space: Space, seal: HeaderSeal) -> Result<Header> {
    let name = space.header_file();
    let path = root.dir(generation).join(&name);
    let bytes = root.read_capped(&path, seal.len).map_err(|source| absent_or_io(&path, &name, generation, source))?;
    let corrupt = |damage| Error::corrupt(name.clone(), generation, damage);
    let actual = bytes.len() as u64;
    if actual != seal.len {
        return Err(corrupt(Damage::Length { expected: seal.len, actual }));
    }
    if crc32c::crc32c(&bytes) != seal.crc {
        return Err(corrupt(Damage::Checksum("file")));
    }
    let header = Header::decode(&bytes).map_err(corrupt)?;
    if header.generation != generation || header.space != space {
        return Err(corrupt(WRONG_OWNER));
    }
    Ok(header)
}

/// Reads and checks what tells of a generation's data file, and no other table of its header: its own index is of no use
/// to a descendant, which has a flat one, and opening a hundred ancestors has to be cheap.
pub(crate) fn read_data_tables(
    root: &Root,
    generation: GenerationId,
    space: Space,
) -> Result<(Vec<u32>, Option<ChunkTable>)> {
    read_part(root, generation, space, FixedPart::data_tables_range, FixedPart::decode_data_tables)
}

/// Reads and checks which generations hold pages of a space, and no other table of its header.
pub(crate) fn read_generations(root: &Root, generation: GenerationId, space: Space) -> Result<Vec<GenerationId>> {
    read_part(root, generation, space, FixedPart::generations_range, FixedPart::decode_generations)
}

fn read_part<T>(
    root: &Root,
    generation: GenerationId,
    space: Space,
    range: impl FnOnce(&FixedPart) -> Range<u64>,
    decode: impl FnOnce(&FixedPart, &[u8]) -> std::result::Result<T, Damage>,
) -> Result<T> {
    let (file, fixed) = read_fixed_part(root, generation, space)?;
    let range = range(&fixed);
    let mut part = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
    let (name, path) = header_of(root, generation, space);
    file.read_exact_at(&mut part, range.start).map_err(|source| absent_or_io(&path, &name, generation, source))?;
    decode(&fixed, &part).map_err(|damage| Error::corrupt(name, generation, damage))
}

/// Reads and checks the start of a generation's header.
pub(crate) fn read_fixed_part(root: &Root, generation: GenerationId, space: Space) -> Result<(File, FixedPart)> {
    let (name, path) = header_of(root, generation, space);
    let io = |source| absent_or_io(&path, &name, generation, source);
    let corrupt = |damage| Error::corrupt(name.clone(), generation, damage);
    let file = root.disk.open(&path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    let mut fixed = [0; FixedPart::LEN_MAX];
    let present = usize::try_from(file_len).unwrap_or(usize::MAX).min(fixed.len());
    file.read_exact_at(&mut fixed[..present], 0).map_err(io)?;
    let fixed = FixedPart::decode(&fixed[..present], file_len).map_err(corrupt)?;
    if fixed.generation != generation || fixed.space != space {
        return Err(corrupt(WRONG_OWNER));
    }
    Ok((file, fixed))
}

fn header_of(root: &Root, generation: GenerationId, space: Space) -> (String, PathBuf) {
    let name = space.header_file();
    let path = root.dir(generation).join(&name);
    (name, path)
}

const WRONG_OWNER: Damage = Damage::Contents("it belongs to another generation or space");

/// A file that a manifest or header names and that is not there is damage; anything else may pass.
pub(crate) fn absent_or_io(path: &Path, name: &str, generation: GenerationId, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => Error::corrupt(name, generation, Damage::Absent),
        _ => Error::io("read", path, source),
    }
}
