//! The name of an image.

use crate::image::error::ImageError;

/// An image's name: a directory's, and part of the names of others beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name(String);

impl Name {
    pub(super) fn parse(name: &str) -> Result<Self, ImageError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let valid = name.len() <= NAME_BYTES_MAX
            && name.bytes().next().is_some_and(plain)
            && name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte));
        if valid { Ok(Self(name.to_owned())) } else { Err(ImageError::Name(name.to_owned())) }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

const NAME_BYTES_MAX: usize = 63;
