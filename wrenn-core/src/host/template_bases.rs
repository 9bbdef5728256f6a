//! The images that templates were made on, and whether these have changed since.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::guest::manifest::Manifest;
use crate::host::handle::Host;
use crate::id::TemplateName;
use crate::image::Image;
use crate::runtime::blocking;
use crate::sandbox::template::Template;
use crate::site::Site;

/// The image that a snapshot or a built template was made on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TemplateBase {
    /// The template's name.
    pub template: TemplateName,
    /// The name of the image whose base its sandboxes have.
    pub image: String,
    /// Whether the image of that name has this base still. Where it has another one, or is gone, sandboxes of the template go
    /// on with the base from before, and only a new build of the template has the new one.
    pub is_current: bool,
}

impl Host {
    /// Lists the snapshots and the built templates with the images that they were made on, by name. A template that was
    /// made from another one has the image of that. A template whose record or generation is damaged is passed over:
    /// [`damaged_records`](Self::damaged_records) names it. The headers of each template's generation are read.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// for base in host.template_bases().await?.iter().filter(|base| !base.is_current) {
    ///     println!("build {} again: {} has changed", base.template, base.image);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`templates`](Self::templates).
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn template_bases(&self) -> Result<Vec<TemplateBase>> {
        let site = Arc::clone(&self.0.site);
        blocking("look at the bases of the templates", move || bases(&site)).await?
    }
}

/// Blocks.
fn bases(site: &Site) -> Result<Vec<TemplateBase>> {
    let mut current: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut bases = Vec::new();
    for template in Template::all(site)? {
        let Some(generation) = template.generation_id() else { continue };
        let manifest =
            site.store.load(generation).map_err(Error::from).and_then(|generation| Manifest::of(&generation));
        let Ok(Manifest { image, base_digest, .. }) = manifest else { continue };
        let digest_now = || Image::open(site.data.path(), &image).ok().map(|image| image.base_digest().to_owned());
        let is_current = current.entry(image.clone()).or_insert_with(digest_now).as_ref() == Some(&base_digest);
        bases.push(TemplateBase { template: template.name().clone(), image, is_current });
    }
    Ok(bases)
}
