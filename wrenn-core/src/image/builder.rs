//! The building of an image: parts that are missing or out of date are built, and the others are linked.

use std::path::Path;

use crate::image::build::{Build, Origin, Plan};
use crate::image::bundled;
use crate::image::error::ImageError;
use crate::image::initramfs::Init;
use crate::image::installed::Image;
use crate::image::kernel::{Freshness, Kernel};
use crate::image::manifest::{Manifest, OciRecord};
use crate::image::modules;
use crate::image::name::Name;
use crate::image::oci_settings::OciSettings;
use crate::image::settings::ImageBuilder;
use crate::image::step::Step;
use crate::image::store::{self, Store, blocking};
use crate::oci::resolve;

impl Image {
    /// The settings of an image to [`build`](ImageBuilder::build), with the name `name`.
    pub fn builder(name: impl Into<String>) -> ImageBuilder {
        ImageBuilder::new(name.into())
    }

    /// The settings of an image that has an OCI image as its base, under the name that people call it: `python-3.12` for
    /// `docker.io/library/python:3.12`. Where that might be another's too, the name ends with a digest of the reference.
    /// [`ImageBuilder::oci`] takes another name.
    ///
    /// The reference is a registry's (`python:3.12`, `ghcr.io/acme/tool@sha256:…`), or what is on this machine: an OCI layout
    /// (`oci:DIRECTORY[:TAG]`), an archive (`oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME:TAG]`), or a root file
    /// system (`tar:FILE`, `dir:DIRECTORY`). Pulling one needs no rights.
    ///
    /// TLS is rustls's. Where the program has chosen no provider of cryptography for it by then, the first pull from a
    /// registry chooses `ring` for the whole process.
    ///
    /// ```no_run
    /// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use wrenn_core::{Sandbox, image::Image};
    ///
    /// let image = host.ensure_image(Image::from_oci("docker.io/library/python:3.12")).await?;
    /// let sandbox = Sandbox::create(host, image.name()).await?;
    /// # Ok(()) }
    /// ```
    pub fn from_oci(reference: impl Into<String>) -> ImageBuilder {
        ImageBuilder::of_reference(reference.into())
    }

    /// Packs the image's initramfs again with the agent that comes with this library, and keeps the other files. Returns
    /// the new image, or the image as it is where it has this agent already, or one that its builder was given. The
    /// first create from an image after an update of the library does the same.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open) where the image was removed or damaged, and [`ImageError::Io`] or
    /// [`ImageError::NoSpace`] where the new files cannot be written.
    ///
    /// # Cancel-Safety
    ///
    /// As [`ImageBuilder::build`].
    pub async fn renew(&self) -> Result<Self, ImageError> {
        renew(self).await
    }

    /// Whether the image has the agent that comes with this library, or one that its builder was given. The first call
    /// in a program blocks the thread for some 20 ms.
    #[must_use]
    pub fn has_current_agent(&self) -> bool {
        let agent = &self.manifest.agent_sha256;
        self.manifest.own_agent || bundled::sha256().is_none_or(|bundled| bundled == agent)
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
    /// that cannot be used, [`ImageError::NoAgent`] where none is named and this library was built without one, and the variants that tell why a step failed. Where an existing image of that name cannot
    /// be opened, the build fails with that error and leaves the image as it is, since paused sandboxes may need its
    /// base.
    ///
    /// # Cancel-Safety
    ///
    /// Programs that were started are killed and what was staged is removed; an existing image is untouched. Once
    /// [`Step::Publishing`] was reported, the build finishes in the background.
    pub async fn build(&self, data_dir: &Path, progress: impl FnMut(&Step) + Send) -> Result<Image, ImageError> {
        self.check()?;
        self.named(data_dir).await?.build_named(data_dir, progress).await
    }

    /// The same under the former name, where an image of the reference has that.
    pub(super) async fn named(&self, data_dir: &Path) -> Result<Self, ImageError> {
        let (Some(former), Some(oci)) = (self.former_name.clone(), &self.oci) else { return Ok(self.clone()) };
        let (here, name, reference) = (data_dir.to_owned(), former.clone(), oci.source()?.to_string());
        let has_it = move || match Image::open(&here, &name) {
            Ok(image) => Ok(image.reference() == Some(&reference)),
            // The image of this name is not there, or is another's, which is not looked at.
            Err(_) => Ok(false),
        };
        match blocking(data_dir, has_it).await? {
            true => Ok(Self { name: former, ..self.clone() }),
            false => Ok(self.clone()),
        }
    }

    async fn build_named(&self, data_dir: &Path, mut progress: impl FnMut(&Step) + Send) -> Result<Image, ImageError> {
        let name = Name::parse(&self.name)?;
        let settings = self.clone();
        let init = blocking(data_dir, move || settings.init()).await?;
        let store = Store::lock(store::images(data_dir), &name, &mut progress).await?;
        let (directory, image, suite) = (data_dir.to_owned(), self.name.clone(), self.kernel_suite().to_owned());
        let look = move || {
            let previous = match Image::open(&directory, &image) {
                Ok(image) => Some(image),
                Err(ImageError::NotFound { .. }) => None,
                Err(error) => return Err(error),
            };
            Ok((previous, Kernel::open(&directory, &suite)?))
        };
        let (previous, mut kernel) = blocking(data_dir, look).await?;
        if self.freshness == Freshness::Newest {
            kernel = Some(Kernel::ensure(data_dir, self.kernel_suite(), self.freshness, &mut progress).await?);
        }
        let plan = self.plan(previous.as_ref().map(|image| &image.manifest), &init, kernel.as_ref()).await?;
        if let (Some(image), Plan::CURRENT) = (&previous, plan) {
            progress(&Step::Current);
            image.note_use();
            return Ok(image.clone());
        }
        let build = Build { plan, init, previous };
        build.run(self, store, data_dir, &mut progress).await
    }

    /// Which parts of the image with this manifest can be used again.
    async fn plan(
        &self,
        manifest: Option<&Manifest>,
        init: &Init,
        kernel: Option<&Kernel>,
    ) -> Result<Plan, ImageError> {
        let Some(manifest) = manifest else {
            return Ok(Plan::EVERYTHING);
        };
        let is_wanted = manifest.recipe_sha256 == self.base_digest()? && self.is_new_enough(manifest).await?;
        // Where none is kept, as beside images that were brought from elsewhere, none is fetched without need.
        let is_kept = kernel.is_none_or(|kernel| kernel.digest() == manifest.kernel_sha256);
        let kernel = Origin::reuse_if(is_kept && manifest.kernel_wanted == modules::wanted_digest());
        let same_agent = manifest.agent_sha256 == init.sha256 && manifest.own_agent == init.own;
        let same_init = kernel == Origin::Reuse && same_agent;
        Ok(Plan {
            base: Origin::reuse_if(is_wanted),
            kernel,
            drive: Origin::reuse_if(manifest.drive_size_bytes == self.drive_size_bytes),
            initramfs: Origin::reuse_if(same_init),
        })
    }

    /// Whether the base is what would be made now, as far as that is asked.
    async fn is_new_enough(&self, manifest: &Manifest) -> Result<bool, ImageError> {
        match (self.freshness, &self.oci, &manifest.oci) {
            (Freshness::Kept, ..) => Ok(true),
            // Its packages were not looked for.
            (Freshness::Newest, _, Some(OciRecord { packages_unread: None, .. })) => Ok(false),
            (Freshness::Newest, Some(oci), Some(record)) => {
                Ok(resolve(&oci.source()?, &oci.pull).await? == record.digest)
            }
            // What Debian has now is known once it is installed.
            (Freshness::Newest, ..) => Ok(false),
        }
    }
}

/// Makes only the initramfs again, even if this version of wrenn would build another base.
async fn renew(image: &Image) -> Result<Image, ImageError> {
    let current = image.clone();
    if blocking(&image.directory, move || Ok(current.has_current_agent())).await? {
        return Ok(image.clone());
    }
    let store = Store::lock(store::images(&image.data_dir), &image.name, &mut |_: &Step| {}).await?;
    // Another build may have replaced the image while this one waited for the lock.
    let (directory, name) = (image.data_dir.clone(), image.name.clone());
    let image = blocking(&image.directory, move || Image::open(&directory, name.as_str())).await?;
    if image.has_current_agent() {
        return Ok(image);
    }
    let init = blocking(&image.directory, Init::bundled).await?;
    let builder = ImageBuilder {
        name: image.name.as_str().to_owned(),
        former_name: None,
        agent: None,
        suite: image.manifest.suite.clone(),
        packages: image.manifest.extra_packages.clone(),
        oci: image.manifest.oci.as_ref().map(|oci| OciSettings::new(oci.reference.clone())),
        drive_size_bytes: image.manifest.drive_size_bytes,
        freshness: Freshness::Kept,
    };
    let data_dir = image.data_dir.clone();
    let build = Build { plan: Plan::INITRAMFS, init, previous: Some(image) };
    build.run(&builder, store, &data_dir, &mut |_: &Step| {}).await
}
