//! What a stage may begin with.

use crate::error::{Error, Result};
use crate::host::handle::Host;
use crate::id::TemplateName;

/// The template that a reference stands for: a template's name is one.
///
/// # Errors
/// [`Error::NotFound`] where there is no such template, [`Error::InvalidInput`] for a reference of another kind.
pub(super) async fn base(host: &Host, reference: &str) -> Result<TemplateName> {
    let Ok(name) = reference.parse::<TemplateName>() else {
        return Err(Error::invalid(format!(
            "{reference:?} is not a template's name, and a build begins with a template: make an image with \
             `Host::ensure_image`, or a template with `Sandbox::snapshot`, and begin with its name"
        )));
    };
    let templates = host.templates().await?;
    if templates.iter().any(|template| *template.name() == name) {
        return Ok(name);
    }
    let names: Vec<&str> = templates.iter().map(|template| template.name().as_str()).collect();
    Err(Error::NotFound {
        subject: Some(crate::error::Subject::Template(name)),
        message: format!(
            "no template is named {reference}, which the build begins with: make it with `Host::ensure_image`; there are {}",
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        ),
    })
}
