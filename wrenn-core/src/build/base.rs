//! What a stage may begin with.

use crate::build::event::BuildEventKind;
use crate::build::teller::Teller;
use crate::error::{Error, Result, Subject};
use crate::host::handle::Host;
use crate::id::TemplateName;
use crate::image::{Image, Step, is_reference};

/// What a plain name stands for, such as `alpine`, where no template is called so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlainName {
    /// Nothing: recipes name templates.
    Template,
    /// An image of Docker's registry, as in every Dockerfile.
    Image,
}

/// The template that a text stands for: a template's name is one, and a reference to an OCI image, which is pulled where it is
/// not here.
///
/// # Errors
/// [`Error::NotFound`] where there is no such template, [`Error::Image`] where the image cannot be had.
pub(super) async fn base(host: &Host, text: &str, plain: PlainName, teller: &Teller) -> Result<TemplateName> {
    let templates = host.templates().await?;
    if let Some(template) = templates.iter().find(|template| template.name().as_str() == text) {
        return Ok(template.name().clone());
    }
    if is_reference(text) || plain == PlainName::Image {
        let builder = Image::from_oci(text);
        let tell = |step: &Step| teller.tell(None, BuildEventKind::Image { text: step.to_string() });
        let name: TemplateName = builder.build(host.data_dir(), tell).await?.name().parse()?;
        // A snapshot's name comes before an image's, so the build would begin with something else than was named.
        if templates.iter().any(|template| template.is_snapshot() && *template.name() == name) {
            return Err(Error::invalid(format!(
                "the image {text} is called {name} here, and so is a snapshot: remove the snapshot, or make the image under \
                 another name, with `Image::builder(NAME).oci(\"{text}\")`, and begin with that"
            )));
        }
        return Ok(name);
    }
    let name: TemplateName = text.parse()?;
    let names: Vec<&str> = templates.iter().map(|template| template.name().as_str()).collect();
    Err(Error::NotFound {
        message: format!(
            "no template is named {name}, which the build begins with: make it with `Host::ensure_image`, or name an OCI \
             image with its tag, like `{name}:latest`; there are {}",
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        ),
        subject: Some(Subject::Template(name)),
    })
}
