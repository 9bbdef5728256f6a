//! What a refresh of an image would change, found without changing anything.

use std::path::Path;

use crate::image::error::ImageError;
use crate::image::installed::Image;
use crate::image::manifest::OciRecord;
use crate::image::settings::ImageBuilder;
use crate::image::store::blocking;
use crate::oci::look;

/// What a build with [`ImageBuilder::refresh`] would make of an image's base, from [`ImageBuilder::plan_refresh`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefreshPlan {
    /// The name of the image.
    pub image: String,
    /// The digest of the OCI image that the base is made of; `None` where no image of this name is made of one.
    pub current_digest: Option<String>,
    /// The digest of what the reference leads to now.
    pub newest_digest: String,
    /// The layers of the newest that the current one does not have, the lowest first.
    pub new_layers: Vec<NewLayer>,
}

/// A layer that a refresh would bring.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewLayer {
    /// The layer's digest, `sha256:` and 64 digits.
    pub digest: String,
    /// The bytes of its archive, compressed as the registry has it; 0 for a root file system of this machine.
    pub archive_bytes: u64,
}

impl RefreshPlan {
    /// Whether the base would be another one.
    #[must_use]
    pub fn changes_base(&self) -> bool {
        self.current_digest.as_ref() != Some(&self.newest_digest)
    }
}

impl ImageBuilder {
    /// Asks what the reference of the image leads to now, and compares that with the image that is here. Nothing is
    /// downloaded but the manifest and the configuration, and nothing is changed. `None` where the base is made of Debian's
    /// packages. For those, and for the kernel, [`Image::plan_packages`] asks.
    ///
    /// ```no_run
    /// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use wrenn_core::image::Image;
    ///
    /// let plan = Image::from_oci("python:3.12").plan_refresh(host.data_dir()).await?;
    /// if plan.is_some_and(|plan| plan.changes_base()) {
    ///     println!("there is a newer python:3.12");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Image::open`], but for an image that is not here, and [`ImageError::Oci`] where the reference cannot be
    /// looked up.
    ///
    /// # Cancel-Safety
    ///
    /// Nothing is left.
    pub async fn plan_refresh(&self, data_dir: &Path) -> Result<Option<RefreshPlan>, ImageError> {
        let Some(oci) = &self.oci else { return Ok(None) };
        oci.check()?;
        let image = self.named(data_dir).await?.name;
        let (here, name) = (data_dir.to_owned(), image.clone());
        let open = move || match Image::open(&here, &name) {
            Ok(image) => Ok(image.manifest.oci),
            Err(ImageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let current = blocking(data_dir, open).await?;
        let found = look(&oci.source()?, &oci.pull).await?;
        let is_new = |digest: &String| current.as_ref().is_none_or(|OciRecord { layers, .. }| !layers.contains(digest));
        let layers = found.layers.into_iter().filter(|(digest, _)| is_new(digest));
        let new_layers = layers.map(|(digest, archive_bytes)| NewLayer { digest, archive_bytes }).collect();
        let current_digest = current.map(|oci| oci.digest);
        Ok(Some(RefreshPlan { image, current_digest, newest_digest: found.digest, new_layers }))
    }
}
