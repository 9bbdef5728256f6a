//! Images by name, and bases by content.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::image::error::ImageError;
use crate::image::installed::Image;
use crate::image::manifest::{MANIFEST, Manifest};
use crate::image::name::Name;
use crate::image::store;

impl Image {
    /// The names of a data directory's images, sorted; none where the directory does not exist. No image is opened.
    ///
    /// # Errors
    ///
    /// [`ImageError::Io`] where the directory cannot be read.
    pub fn names(data_dir: &Path) -> Result<Vec<String>, ImageError> {
        let mut names: Vec<String> =
            directories(data_dir)?.into_iter().filter(|name| Name::parse(name).is_ok()).collect();
        names.sort();
        Ok(names)
    }

    /// The path of the base with this [`base_digest`](Self::base_digest), of the image `name` or of a former image of
    /// that name that was kept. Drives that were written over that base need it.
    ///
    /// # Errors
    ///
    /// [`ImageError::NotFound`] where no kept image has that base. An image that cannot be read is passed over; where
    /// no other image has the base, the error of the unreadable one is returned.
    pub fn base_of_digest(data_dir: &Path, name: &str, base_digest: &str) -> Result<PathBuf, ImageError> {
        let name = Name::parse(name)?;
        let former = format!("{}@", name.as_str());
        let mut unreadable = None;
        for candidate in directories(data_dir)? {
            if candidate != name.as_str() && !candidate.starts_with(&former) {
                continue;
            }
            let directory = store::images(data_dir).join(&candidate);
            match base(&directory, base_digest) {
                Ok(Some(path)) => return Ok(path),
                Ok(None) => {}
                // Another image may have the base. An image whose removal was begun is not to be in the way.
                Err(error) => {
                    let (cause, image) = (&error as &dyn std::error::Error, directory.display());
                    tracing::warn!(error = cause, %image, "an image that cannot be read is passed over");
                    unreadable = unreadable.or(Some(error));
                }
            }
        }
        let name = format!("{} with the base {base_digest}", name.as_str());
        Err(unreadable.unwrap_or_else(|| ImageError::NotFound { name, images: store::images(data_dir) }))
    }
}

/// The base of the image in `directory`, where it has this digest.
fn base(directory: &Path, base_digest: &str) -> Result<Option<PathBuf>, ImageError> {
    let manifest = Manifest::read(&directory.join(MANIFEST))?;
    if manifest.files.get(manifest.base()).is_none_or(|base| base.sha256 != base_digest) {
        return Ok(None);
    }
    let path = directory.join(manifest.base());
    path.metadata().map_err(ImageError::io("open", &path))?;
    Ok(Some(path))
}

/// The names of the directories, also of former images.
pub(super) fn directories(data_dir: &Path) -> Result<Vec<String>, ImageError> {
    let images = store::images(data_dir);
    let entries = match fs::read_dir(&images) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ImageError::io("list", &images)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ImageError::io("list", &images))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.path().is_dir() {
            names.push(name);
        }
    }
    Ok(names)
}
