//! The name of an image.

use crate::id::TemplateName;
use crate::image::error::ImageError;

/// An image's name: a template's, a directory's, and part of the names of others beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name(TemplateName);

impl Name {
    pub(super) fn parse(name: &str) -> Result<Self, ImageError> {
        name.parse().map(Self).map_err(|_| ImageError::Name(name.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.as_str()
    }
}
