//! The building of an image: parts that are missing or out of date are built, and the others are linked.

use crate::image::settings::ImageBuilder;
use crate::image::settings::setting;
use std::path::{Path, PathBuf};

use crate::image::build::{Build, Origin, Plan};
use crate::image::error::ImageError;
use crate::image::initramfs::Init;
use crate::image::installed::Image;
use crate::image::manifest::Manifest;
use crate::image::name::Name;
use crate::image::rootfs::Recipe;
use crate::image::step::Step;
use crate::image::store::{Store, blocking};

impl Image {
    /// The settings of an image to [`build`](ImageBuilder::build), with the name `name`.
    pub fn builder(name: impl Into<String>) -> ImageBuilder {
        ImageBuilder::new(name.into())
    }

    /// Packs the image's initramfs again with another agent, and keeps the other files. Returns the new image, or the
    /// image as it is where it has this agent already.
    ///
    /// # Errors
    ///
    /// [`ImageError::Agent`] where the agent is not a static x86-64 binary, those of [`open`](Self::open) where the
    /// image was removed or damaged, and [`ImageError::Io`] or [`ImageError::NoSpace`] where the new files cannot be
    /// written.
    ///
    /// # Cancel-Safety
    ///
    /// As [`ImageBuilder::build`].
    pub async fn refresh(&self, agent: impl Into<PathBuf>) -> Result<Self, ImageError> {
        refresh(self, agent.into()).await
    }

    /// Whether the image has this agent, and has the base that this version of wrenn would build. Reads the agent's
    /// binary, and blocks the thread to do so.
    ///
    /// # Errors
    ///
    /// [`ImageError::Agent`] where the agent is not a static x86-64 binary, [`ImageError::Io`] where it cannot be read.
    pub fn is_current(&self, agent: &Path) -> Result<bool, ImageError> {
        let init = Init::read(agent)?;
        let recipe = recipe_of(&self.manifest);
        Ok(init.sha256 == self.manifest.agent_sha256 && recipe.digest() == self.manifest.recipe_sha256)
    }
}

impl ImageBuilder {
    /// Builds the image, or those of its parts that are missing or differ from the settings. A base takes about a
    /// minute, and needs the network and root. Another agent or drive size takes a fraction of a second. `progress` is
    /// told of each step.
    ///
    /// # Errors
    ///
    /// [`ImageError::Name`] and [`ImageError::Setting`] for settings that cannot be, [`ImageError::Agent`] for an agent
    /// that cannot be used, and the variants that tell why a step failed. Where an existing image of that name cannot
    /// be opened, the build fails with that error and leaves the image as it is, since paused sandboxes may need its
    /// base.
    ///
    /// # Cancel-Safety
    ///
    /// Programs that were started are killed and what was staged is removed; an existing image is untouched. Once
    /// [`Step::Publishing`] was reported, the build finishes in the background.
    pub async fn build(&self, data_dir: &Path, mut progress: impl FnMut(&Step) + Send) -> Result<Image, ImageError> {
        let name = Name::parse(&self.name)?;
        self.check()?;
        let Some(agent) = self.agent.clone() else {
            return Err(setting("agent", "", "a static x86-64 binary"));
        };
        let init = blocking(&agent.clone(), move || Init::read(&agent)).await?;
        let store = Store::lock(data_dir, &name, &mut progress).await?;
        let (directory, image) = (data_dir.to_owned(), self.name.clone());
        let previous = match blocking(data_dir, move || Image::open(&directory, &image)).await {
            Ok(image) => Some(image),
            Err(ImageError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let plan = self.plan(previous.as_ref().map(|image| &image.manifest), &init);
        if let (Some(image), Plan::CURRENT) = (&previous, plan) {
            progress(&Step::Current);
            return Ok(image.clone());
        }
        let build = Build { plan, init, previous };
        build.run(self, store, data_dir, &mut progress).await
    }

    /// Which parts of the image with this manifest can be used again.
    fn plan(&self, manifest: Option<&Manifest>, init: &Init) -> Plan {
        let Some(manifest) = manifest else {
            return Plan::EVERYTHING;
        };
        let base = Origin::reuse_if(manifest.recipe_sha256 == self.recipe.digest());
        let same_init = base == Origin::Reuse && manifest.agent_sha256 == init.sha256;
        Plan {
            base,
            drive: Origin::reuse_if(manifest.drive_size_bytes == self.drive_size_bytes),
            initramfs: Origin::reuse_if(same_init),
        }
    }
}

/// Makes only the initramfs again, even if this version of wrenn would build another base.
pub(super) async fn refresh(image: &Image, agent: PathBuf) -> Result<Image, ImageError> {
    let init = blocking(&agent.clone(), move || Init::read(&agent)).await?;
    let store = Store::lock(&image.data_dir, &image.name, &mut |_: &Step| {}).await?;
    // Another build may have replaced the image while this one waited for the lock.
    let (directory, name) = (image.data_dir.clone(), image.name.clone());
    let image = blocking(&image.directory, move || Image::open(&directory, name.as_str())).await?;
    if init.sha256 == image.manifest.agent_sha256 {
        return Ok(image);
    }
    let builder = ImageBuilder {
        name: image.name.as_str().to_owned(),
        agent: None,
        recipe: recipe_of(&image.manifest),
        drive_size_bytes: image.manifest.drive_size_bytes,
    };
    let data_dir = image.data_dir.clone();
    let build = Build { plan: Plan::INITRAMFS, init, previous: Some(image) };
    build.run(&builder, store, &data_dir, &mut |_: &Step| {}).await
}

/// What this version of wrenn would make for the same settings.
pub(super) fn recipe_of(manifest: &Manifest) -> Recipe {
    Recipe { suite: manifest.suite.clone(), extra_packages: manifest.extra_packages.clone() }
}
