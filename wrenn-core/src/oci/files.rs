//! Images that are on this machine: directories of the OCI layout, and archives of such and of `docker save`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::oci::digest::Digest;
use crate::oci::error::OciError;
use crate::oci::manifest::{Descriptor, Document, choose};
use crate::oci::tar_reader::{TarKind, TarReader};

/// A set of files by name.
#[derive(Debug)]
pub(super) enum Files {
    Directory(PathBuf),
    /// Each file's offset and length in the archive.
    Archive {
        path: PathBuf,
        file: File,
        places: HashMap<String, (u64, u64)>,
    },
}

impl Files {
    /// Blocks, as everything here.
    pub(super) fn archive(path: &Path) -> Result<Self, OciError> {
        let file = File::open(path).map_err(OciError::io("open", path))?;
        let what = format!("the archive {}", path.display());
        let fault = |error: io::Error| OciError::Malformed {
            what: what.clone(),
            reason: format!("{error}; a compressed one has to be unpacked first"),
            source: Some(error.into()),
        };
        let places = places(&file).map_err(fault)?;
        Ok(Self::Archive { path: path.to_owned(), file, places })
    }

    /// A file and its length.
    pub(super) fn open(&self, name: &str) -> Result<(Part, u64), OciError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
                let (bytes, file) = opened.map_err(OciError::io("open", &path))?;
                Ok((Part { file, position: 0, end: bytes }, bytes))
            }
            Self::Archive { path, file, places } => {
                let place = places
                    .get(name)
                    .ok_or_else(|| OciError::NotFound { what: format!("`{name}` in {}", path.display()) });
                let &(position, bytes) = place?;
                let file = file.try_clone().map_err(OciError::io("open", path))?;
                Ok((Part { file, position, end: position + bytes }, bytes))
            }
        }
    }

    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, OciError> {
        let (part, bytes) = self.open(name)?;
        if bytes > limit {
            return Err(OciError::Limit { what: format!("the length of `{name}`"), limit });
        }
        let mut content = Vec::new();
        part.take(limit).read_to_end(&mut content).map_err(OciError::io("read", Path::new(name)))?;
        Ok(content)
    }

    /// A blob of an OCI layout that is no layer.
    pub(super) fn blob(&self, digest: Digest, limit: u64) -> Result<Vec<u8>, OciError> {
        let bytes = self.read(&blob_name(digest), limit)?;
        digest.check(Digest::of(&bytes), format!("the blob {digest}"))?;
        Ok(bytes)
    }

    /// The descriptor of an image in an OCI layout.
    pub(super) fn image(&self, tag: Option<&str>, limit: u64) -> Result<Descriptor, OciError> {
        let Document::Index(all) = Document::parse(&self.read("index.json", limit)?, "index.json")? else {
            return Err(OciError::malformed("index.json", "it is no index"));
        };
        let Some(tag) = tag else {
            return if all.len() == 1 || all.is_empty() { one(&all) } else { choose(&all).cloned() };
        };
        let named: Vec<Descriptor> = all.into_iter().filter(|image| image.is_named(tag)).collect();
        if named.is_empty() {
            return Err(OciError::NotFound { what: format!("image with the tag `{tag}` in index.json") });
        }
        if named.len() == 1 { one(&named) } else { choose(&named).cloned() }
    }

    /// What `docker save` says of an image: the names of its configuration and its layers.
    pub(super) fn saved(&self, name: Option<&str>, limit: u64) -> Result<Saved, OciError> {
        let what = "manifest.json";
        let all: Vec<Saved> = serde_json::from_slice(&self.read(what, limit)?).map_err(OciError::json(what))?;
        let named = |saved: &Saved| {
            let tags = saved.repo_tags.as_deref().unwrap_or_default();
            name.is_none_or(|name| tags.iter().any(|tag| tag == name || tag.strip_suffix(":latest") == Some(name)))
        };
        let mut found: Vec<Saved> = all.into_iter().filter(named).collect();
        match (found.pop(), found.len(), name) {
            (Some(saved), 0, _) => Ok(saved),
            (Some(_), _, None) => Err(OciError::malformed(what, "it has several images, and none is named")),
            (Some(_), _, Some(name)) => {
                Err(OciError::malformed(what, format!("it has several images called `{name}`")))
            }
            (None, _, name) => {
                Err(OciError::NotFound { what: format!("image `{}` in the archive", name.unwrap_or("")) })
            }
        }
    }
}

fn one(images: &[Descriptor]) -> Result<Descriptor, OciError> {
    images.first().cloned().ok_or_else(|| OciError::malformed("index.json", "it has no image"))
}

pub(super) fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Saved {
    pub(super) config: String,
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Vec<String>,
}

/// Where the archive's files are. A link to another of its files is that file.
fn places(file: &File) -> io::Result<HashMap<String, (u64, u64)>> {
    let counted = Counted { inner: file, position: 0 };
    let mut reader = TarReader::new(Buffered(BufReader::new(counted)));
    let (mut places, mut links) = (HashMap::new(), Vec::new());
    while let Some(entry) = reader.next()? {
        let name = String::from_utf8_lossy(&entry.path).trim_start_matches("./").to_owned();
        match entry.kind {
            TarKind::File(extents) if extents.list.len() <= 1 => {
                let position = reader.inner().position();
                places.insert(name, (position, extents.size));
            }
            TarKind::Symlink(target) => {
                let target = String::from_utf8_lossy(&target).into_owned();
                links.push((name.clone(), target.trim_start_matches("../").to_owned()));
            }
            TarKind::Link(target) => links.push((name, String::from_utf8_lossy(&target).into_owned())),
            _ => {}
        }
        if places.len() + links.len() > FILES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has too many files for an image's archive"));
        }
    }
    for (name, target) in links {
        if let Some(place) = places.get(&target).copied() {
            places.insert(name, place);
        }
    }
    Ok(places)
}

/// A file whose position is known, and which is not read where it is skipped.
struct Counted<'a> {
    inner: &'a File,
    position: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

struct Buffered<'a>(BufReader<Counted<'a>>);

impl Buffered<'_> {
    fn position(&self) -> u64 {
        self.0.get_ref().position - self.0.buffer().len() as u64
    }
}

impl Read for Buffered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

/// A part of a file.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    position: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

const FILES_MAX: usize = 100_000;
