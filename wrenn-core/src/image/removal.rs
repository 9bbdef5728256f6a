//! The removal of images, and of what former ones have left.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::image::error::ImageError;
use crate::image::installed::Image;
use crate::image::lookup::directories;
use crate::image::manifest::{MANIFEST, Manifest};
use crate::image::name::Name;
use crate::image::step::Step;
use crate::image::store::{self, Store, blocking};
use crate::oci::{prune, verify};

impl Image {
    /// Takes an image's name away. Its files stay under another one, until [`remove_former`](Self::remove_former) finds
    /// that nobody needs them. An image that cannot be read is moved there too.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the image as it was, or without its name.
    pub(crate) async fn retire(data_dir: &Path, name: &str) -> Result<(), ImageError> {
        let name = Name::parse(name)?;
        let store = Store::lock(store::images(data_dir), &name, &mut |_: &Step| {}).await?;
        let data_dir = data_dir.to_owned();
        blocking(&data_dir.clone(), move || {
            let path = store::images(&data_dir).join(name.as_str());
            let digest = match Manifest::read(&path.join(MANIFEST)) {
                Ok(manifest) => manifest.digest(),
                Err(_) if path.is_dir() => format!("{:012x}", rand::random::<u64>() >> 16),
                Err(_) => {
                    return Err(ImageError::NotFound {
                        name: name.as_str().to_owned(),
                        images: store::images(&data_dir),
                    });
                }
            };
            let former = store::images(&data_dir).join(store::kept_name(&name, &digest));
            // One that was kept already goes with the next removal of what nobody needs, under this one's name.
            let flags = if former.exists() { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
            renameat2(AT_FDCWD, &path, AT_FDCWD, &former, flags)
                .map_err(|errno| ImageError::io("rename", &path)(errno.into()))?;
            if flags == RenameFlags::RENAME_EXCHANGE {
                fs::remove_dir_all(&path).map_err(ImageError::io("remove", &path))?;
            }
            drop(store);
            Ok(())
        })
        .await
    }

    /// Removes the images that have lost their name, but for those whose base is in `needed`. Returns their names. Blocks.
    pub(crate) fn remove_former(data_dir: &Path, needed: &BTreeSet<String>) -> Result<Vec<String>, ImageError> {
        let mut removed = Vec::new();
        for directory in directories(data_dir)?.into_iter().filter(|name| name.contains('@')) {
            let path = store::images(data_dir).join(&directory);
            let manifest = Manifest::read(&path.join(MANIFEST));
            let digest = manifest.as_ref().ok().and_then(|manifest| manifest.files.get(manifest.base()));
            if digest.is_none_or(|base| !needed.contains(&base.sha256)) {
                fs::remove_dir_all(&path).map_err(ImageError::io("remove", &path))?;
                removed.push(directory);
            }
        }
        Ok(removed)
    }

    /// Reads every layer of OCI images that is kept, and removes those that are damaged, so that the next image that has one
    /// pulls it anew. Images have what they need of their layers, and are not affected. Returns the digests of what it removed.
    ///
    /// # Errors
    ///
    /// [`ImageError::Oci`] where a layer cannot be read or removed.
    ///
    /// # Cancel-Safety
    ///
    /// Each layer is there or gone.
    pub async fn remove_damaged_layers(data_dir: &Path) -> Result<Vec<String>, ImageError> {
        let layers = store::layers(data_dir);
        if !layers.is_dir() {
            return Ok(Vec::new());
        }
        let (whole, damaged) = verify(&layers).await?;
        if damaged.is_empty() {
            return Ok(damaged);
        }
        Ok(prune(&layers, whole.into_iter().collect()).await?)
    }

    /// How much of the disk the images and their layers take, with those that have lost their names. A file with several names
    /// counts once; one that goes meanwhile counts or not. Blocks.
    pub(crate) fn stored_bytes(data_dir: &Path) -> Result<u64, ImageError> {
        let (mut bytes, mut seen) = (0, BTreeSet::new());
        for directory in [store::images(data_dir), store::layers(data_dir)] {
            for entry in entries(&directory)? {
                for file in entries(&entry)? {
                    let Ok(metadata) = file.symlink_metadata() else { continue };
                    if seen.insert((metadata.dev(), metadata.ino())) {
                        bytes += metadata.blocks() * 512;
                    }
                }
            }
        }
        Ok(bytes)
    }

    /// Removes the layers that no image has. They are kept for the building of other images alone. Returns their digests.
    ///
    /// # Cancel-Safety
    /// Each layer is whole or gone.
    pub(crate) async fn remove_layers(data_dir: &Path) -> Result<Vec<String>, ImageError> {
        let layers = store::layers(data_dir);
        if !layers.is_dir() {
            return Ok(Vec::new());
        }
        let here = data_dir.to_owned();
        let keep = blocking(data_dir, move || {
            let mut keep = BTreeSet::new();
            for name in Self::names(&here)? {
                // What a damaged image needs can be pulled again.
                if let Ok(Self { manifest: Manifest { oci: Some(oci), .. }, .. }) = Self::open(&here, &name) {
                    keep.extend(oci.layers);
                }
            }
            Ok(keep)
        })
        .await?;
        Ok(prune(&layers, keep).await?)
    }
}

/// The paths in a directory; none where it is not there, or is no directory.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let io = || ImageError::io("list", directory);
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(io())).collect(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(io()(error)),
    }
}
