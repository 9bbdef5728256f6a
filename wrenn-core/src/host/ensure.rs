//! An image that is to be there: built where it is not, and renewed where an older wrenn built it.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;

use crate::error::Result;
use crate::host::handle::Host;
use crate::image::{Image, ImageBuilder, Step};

impl Host {
    /// Sees to it that an image is there, so that [`Sandbox::create`](crate::Sandbox::create) finds it: builds the
    /// image where there is none of that name, or those of its parts that differ from what is asked for. That is the
    /// whole setup of a host. `image` is a name, or an [`ImageBuilder`] with settings.
    ///
    /// The first image takes one to two minutes, root and the network: kernel and base come from Debian, some 150 MB
    /// of packages. An image that is up to date takes a few milliseconds.
    ///
    /// ```no_run
    /// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use wrenn_core::image::Image;
    ///
    /// host.ensure_image("base").await?;
    /// let numpy = Image::builder("numpy").package("python3-numpy");
    /// host.ensure_image(numpy).on_step(|step| eprintln!("{step}")).await?;
    /// # Ok(()) }
    /// ```
    pub fn ensure_image(&self, image: impl Into<ImageBuilder>) -> EnsureImage {
        EnsureImage { host: self.clone(), image: image.into(), on_step: Box::new(|_| {}) }
    }
}

/// The building of an image, made by [`Host::ensure_image`], and done when it is awaited.
///
/// # Errors
/// Those of [`ImageBuilder::build`]; what the machine lacks is an [`Error::Host`](crate::Error::Host) that names the
/// command which installs it.
///
/// # Cancel-Safety
/// As [`ImageBuilder::build`]: what was begun is removed, what was there is untouched, and the next call begins anew.
#[must_use = "nothing happens until it is awaited"]
pub struct EnsureImage {
    host: Host,
    image: ImageBuilder,
    on_step: Box<dyn FnMut(&Step) + Send>,
}

impl EnsureImage {
    /// A function that is told of each step when it begins. Its `Display` is a line for a person. Default: none.
    pub fn on_step(mut self, on_step: impl FnMut(&Step) + Send + 'static) -> Self {
        self.on_step = Box::new(on_step);
        self
    }
}

impl IntoFuture for EnsureImage {
    type Output = Result<Image>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(mut self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.image.build(self.host.data_dir(), &mut *self.on_step).await?) })
    }
}

impl fmt::Debug for EnsureImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnsureImage").field("image", &self.image).finish_non_exhaustive()
    }
}
