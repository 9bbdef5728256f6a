//! What a stored generation needs of others, from as few bytes as tell it.

use crate::{
    damage::Damage,
    data::headers::{absent_or_io, read_generations},
    error::{Error, Result},
    format::manifest::{MANIFEST_BYTES_MAX, Manifest},
    id::GenerationId,
    root::Root,
    space::Space,
};

/// The generations whose files a generation's readers need.
#[derive(Debug)]
pub(crate) struct Reach {
    manifest: Manifest,
    /// Of each of its spaces, the generations that hold pages of it.
    holders: Vec<(Space, Vec<GenerationId>)>,
}

impl Reach {
    /// Reads the manifest and the generation tables alone: not the extents, of which there may be millions.
    pub(crate) fn of(root: &Root, id: GenerationId) -> Result<Self> {
        let manifest = read_manifest(root, id)?;
        let read = |space| Ok((space, read_generations(root, id, space)?));
        let holders = manifest.spaces.iter().map(|record| read(record.space)).collect::<Result<_>>()?;
        Ok(Self { manifest, holders })
    }

    /// The same of a generation whose files are all there, and as long as they have to be.
    pub(crate) fn of_whole(root: &Root, id: GenerationId) -> Result<Self> {
        let reach = Self::of(root, id)?;
        check_files(root, &reach.manifest, reach.holders.iter().map(|(space, ids)| (*space, ids.as_slice())))?;
        Ok(reach)
    }

    /// The generations, itself included. One may come twice.
    pub(crate) fn generations(&self) -> impl Iterator<Item = GenerationId> {
        let held = self.holders.iter().flat_map(|(_, ids)| ids.iter().copied());
        held.chain(std::iter::once(self.manifest.id))
    }
}

/// Every file is there and as long as it has to be, and the generations that hold pages of a space are there. What is in
/// them is checked when they are opened.
pub(crate) fn check_files<'a>(
    root: &Root,
    manifest: &Manifest,
    holders: impl Iterator<Item = (Space, &'a [GenerationId])>,
) -> Result<()> {
    for record in &manifest.spaces {
        check_len(root, record.space.data_file(), manifest.id, record.data_len)?;
    }
    for (space, ids) in holders {
        let file = space.data_file();
        for id in ids {
            let path = root.dir(*id).join(&file);
            root.len(&path).map_err(|source| absent_or_io(&path, &file, *id, source))?;
        }
    }
    manifest.blobs.iter().try_for_each(|blob| check_len(root, blob_file(&blob.name), manifest.id, blob.len))
}

fn check_len(root: &Root, file: String, id: GenerationId, expected: u64) -> Result<()> {
    let path = root.dir(id).join(&file);
    let actual = root.len(&path).map_err(|source| absent_or_io(&path, &file, id, source))?;
    if actual == expected { Ok(()) } else { Err(Error::corrupt(file, id, Damage::Length { expected, actual })) }
}

/// Reads and checks a generation's manifest.
pub(crate) fn read_manifest(root: &Root, id: GenerationId) -> Result<Manifest> {
    let path = root.dir(id).join(MANIFEST_FILE);
    let bytes =
        root.read_capped(&path, MANIFEST_BYTES_MAX).map_err(|source| absent_or_io(&path, MANIFEST_FILE, id, source))?;
    let manifest = Manifest::decode(&bytes).map_err(|damage| Error::corrupt(MANIFEST_FILE, id, damage))?;
    if manifest.id != id {
        let damage = Damage::Contents("it belongs to another generation");
        return Err(Error::corrupt(MANIFEST_FILE, id, damage));
    }
    Ok(manifest)
}

/// The name of a blob's file.
pub(crate) fn blob_file(name: &str) -> String {
    format!("{name}.blob")
}

pub(crate) const MANIFEST_FILE: &str = "manifest";
