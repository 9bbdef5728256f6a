//! The images of a host's data directory: their removal, and that of what nobody needs any more.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result, Subject};
use crate::guest::manifest::Manifest;
use crate::host::handle::Host;
use crate::id::TemplateName;
use crate::image::{Image, ImageError};
use crate::runtime::blocking;
use crate::sandbox::boots::forget_boots_of;
use crate::site::Site;

/// What [`Host::prune_images`] or [`Host::prune_unused_images`] has removed.
///
/// ```
/// assert!(wrenn_core::Pruned::default().layers.is_empty());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// The images: a former one as `NAME@` and the beginning of its digest, one that was not used by its name.
    pub images: Vec<String>,
    /// The digests of the layers of OCI images.
    pub layers: Vec<String>,
    /// How many bytes of the disk the images and layers took before, and no longer take.
    pub bytes: u64,
}

impl Host {
    /// Removes an image: its name can be given anew, and no create finds it. Snapshots and paused sandboxes that were made
    /// from it are not affected, and keep its base on disk as long as they are there.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// host.remove_image("python-3.12").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is no image of this name, [`Error::InvalidInput`] for a malformed name.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the image as it was, or removed; what it leaves on disk is removed by the next
    /// [`prune_images`](Self::prune_images).
    pub async fn remove_image(&self, name: &str) -> Result<()> {
        let name: TemplateName = name.parse()?;
        match Image::retire(self.data_dir(), name.as_str()).await {
            Err(ImageError::NotFound { .. }) => {
                return Err(Error::not_found(Subject::Template(name.clone()), format!("no image is named {name}")));
            }
            retired => retired?,
        }
        let (site, image) = (Arc::clone(&self.0.site), name);
        blocking("forget the image's boots", move || forget_boots_of(&site, image.as_str())).await??;
        self.collect_garbage().await?;
        self.remove_former_images().await.map(drop)
    }

    /// Removes what no image, snapshot or sandbox needs: images that were removed or replaced, and the layers of OCI images
    /// that none has. Layers are kept for the building of other images alone, and can be pulled again.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// let pruned = host.prune_images().await?;
    /// println!("{} images and {} layers are gone, and {} bytes", pruned.images.len(), pruned.layers.len(), pruned.bytes);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`collect_garbage`](Self::collect_garbage), and [`Error::Image`] where a file cannot be removed.
    ///
    /// # Cancel-Safety
    /// Each image and each layer is there or gone.
    pub async fn prune_images(&self) -> Result<Pruned> {
        let before = stored_bytes(&self.0.site).await?;
        self.collect_garbage().await?;
        let images = self.remove_former_images().await?;
        let layers = Image::remove_layers(self.data_dir()).await?;
        Ok(Pruned { images, layers, bytes: before.saturating_sub(stored_bytes(&self.0.site).await?) })
    }

    async fn remove_former_images(&self) -> Result<Vec<String>> {
        let (site, data_dir): (_, PathBuf) = (Arc::clone(&self.0.site), self.data_dir().to_owned());
        let remove = move || match needed_bases(&site)? {
            Some(needed) => Ok(Image::remove_former(&data_dir, &needed)?),
            None => Ok(Vec::new()),
        };
        blocking("remove former images", remove).await?
    }
}

/// How much of the disk the images and their layers take. A file with several names counts once.
pub(crate) async fn stored_bytes(site: &Arc<Site>) -> Result<u64> {
    let data_dir = site.data.path().to_owned();
    let count = move || Ok(Image::stored_bytes(&data_dir)?);
    blocking("count what images take", count).await?
}

/// The digests of the bases that generations need; `None` where a damaged one does not tell, which may be mended. What runs
/// needs the generation that it came from, so it is among them. Blocks.
pub(crate) fn needed_bases(site: &Site) -> Result<Option<BTreeSet<String>>> {
    let mut needed = BTreeSet::new();
    for id in site.store.list()? {
        let manifest = site.store.load(id).map_err(Error::from).and_then(|generation| Manifest::of(&generation));
        match manifest {
            Ok(manifest) => drop(needed.insert(manifest.base_digest)),
            // It was collected meanwhile.
            Err(_) if !site.store.list()?.contains(&id) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%id, error, "former images stay, since a damaged generation may need one");
                return Ok(None);
            }
        }
    }
    Ok(Some(needed))
}
