//! The removal of images that builds have pulled, and that nobody uses any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::build::cache::forget_steps_on;
use crate::error::{Error, Result};
use crate::host::handle::Host;
use crate::host::images::{Pruned, needed_bases, stored_bytes};
use crate::image::{Image, ImageError};
use crate::runtime::blocking;
use crate::sandbox::boots::{booted_at, forget_boots_of};
use crate::site::Site;

impl Host {
    /// Removes the images that `is_meant` accepts, that were not used for the time `unused`, and that no template and no
    /// sandbox needs; and then all that [`prune_images`](Self::prune_images) removes. An image is used by a create from it, by
    /// a build that begins with it, and by who ensures that it is there. Steps of builds that began with such an image are
    /// forgotten, as far as they were not used for as long.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use std::time::Duration;
    ///
    /// let week = Duration::from_secs(7 * 24 * 3600);
    /// let pruned = host.prune_unused_images(week, |image| image.reference().is_some()).await?;
    /// println!("{} bytes are free again", pruned.bytes);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`prune_images`](Self::prune_images).
    ///
    /// # Cancel-Safety
    /// Each image and each layer is there or gone.
    pub async fn prune_unused_images(
        &self,
        unused: Duration,
        is_meant: impl Fn(&Image) -> bool + Send,
    ) -> Result<Pruned> {
        let before = stored_bytes(&self.0.site).await?;
        let site = Arc::clone(&self.0.site);
        let mut images = blocking("look for unused images", move || unused_images(&site, unused)).await??;
        images.retain(is_meant);
        let names: BTreeSet<String> = images.iter().map(|image| image.name().to_owned()).collect();
        let site = Arc::clone(&self.0.site);
        let forget = move || {
            names.iter().try_for_each(|name| forget_boots_of(&site, name))?;
            forget_steps_on(&site, &names, unused)
        };
        blocking("forget the boots and steps of unused images", forget).await??;
        self.collect_garbage().await?;
        let site = Arc::clone(&self.0.site);
        // Where a damaged generation does not tell what it needs, all may be needed.
        let Some(needed) = blocking("look for what is needed", move || needed_bases(&site)).await?? else {
            return Ok(Pruned::default());
        };
        let mut removed = Vec::new();
        for image in images.iter().filter(|image| !needed.contains(image.base_digest())) {
            match self.remove_image(image.name()).await {
                Ok(()) => removed.push(image.name().to_owned()),
                // Another has removed it meanwhile.
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut pruned = self.prune_images().await?;
        pruned.images.splice(0..0, removed);
        pruned.bytes = before.saturating_sub(stored_bytes(&self.0.site).await?);
        Ok(pruned)
    }
}

/// Those that were not used for the time `unused`, and can be opened. Blocks.
fn unused_images(site: &Site, unused: Duration) -> Result<Vec<Image>> {
    let data_dir = site.data.path();
    let mut images = Vec::new();
    for name in Image::names(data_dir)? {
        let image = match Image::open(data_dir, &name) {
            Ok(image) => image,
            Err(ImageError::NotFound { .. }) => continue,
            Err(error) => {
                tracing::warn!(name, error = &error as &dyn std::error::Error, "an image that cannot be read stays");
                continue;
            }
        };
        let used = booted_at(site, &name)?.unwrap_or(SystemTime::UNIX_EPOCH).max(image.asked_for_at()?);
        if used.elapsed().is_ok_and(|age| age >= unused) {
            images.push(image);
        }
    }
    Ok(images)
}
