//! Names that reach paths, guests and logs: checked once, where they come in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The error for a text that is not a sandbox's id, or not a template's name. Its `Display` tells what such a text
/// looks like.
///
/// ```
/// use wrenn_core::TemplateName;
///
/// let error = "../etc".parse::<TemplateName>().unwrap_err();
/// assert!(error.to_string().starts_with("\"../etc\" is not a template name"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(String);

/// A sandbox's identity: `sb` and 16 hex digits, which is also its host name.
///
/// The id has only letters and digits, since the E2B clients accept nothing else.
///
/// ```
/// use wrenn_core::SandboxId;
///
/// let id: SandboxId = "sb00f00ba70000002a".parse()?;
/// assert_eq!(id.as_str(), "sb00f00ba70000002a");
/// # Ok::<_, wrenn_core::NameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    pub(crate) fn random() -> Self {
        Self(format!("sb{:016x}", rand::random::<u64>()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SandboxId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let digits = text.strip_prefix("sb").unwrap_or_default();
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() == 16 && digits.bytes().all(hex) {
            return Ok(Self(text.to_owned()));
        }
        Err(NameError(format!("{text:?} is not a sandbox id: one is `sb` and 16 hex digits")))
    }
}

impl TryFrom<String> for SandboxId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

/// A template's name: 1 to 63 lower-case letters, digits, `.`, `_` and `-`. The first one is a letter or a digit.
///
/// ```
/// use wrenn_core::TemplateName;
///
/// let name: TemplateName = "python-3.11".parse()?;
/// assert_eq!(name.to_string(), "python-3.11");
/// # Ok::<_, wrenn_core::NameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateName(String);

impl TemplateName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TemplateName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let starts_well = text.bytes().next().is_some_and(plain);
        if starts_well && text.len() <= 63 && text.bytes().all(|b| plain(b) || b"._-".contains(&b)) {
            return Ok(Self(text.to_owned()));
        }
        Err(NameError(format!(
            "{text:?} is not a template name: use up to 63 lower-case letters, digits, `.`, `_` and `-`, \
             beginning with a letter or a digit"
        )))
    }
}

impl TryFrom<String> for TemplateName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<TemplateName> for String {
    fn from(name: TemplateName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_that_could_leave_their_directory_are_refused() {
        for bad in ["", "../x", "a/b", "a;cmd;b", ".hidden", "A", "a b", "a\0", &"a".repeat(64)] {
            assert!(bad.parse::<TemplateName>().is_err(), "{bad:?}");
            assert!(bad.parse::<SandboxId>().is_err(), "{bad:?}");
        }
        assert!("sb0123456789abcde".parse::<SandboxId>().is_err());
        assert!("sb0123456789abcdeG".parse::<SandboxId>().is_err());
    }

    #[test]
    fn a_random_id_reads_back() {
        let id = SandboxId::random();
        assert_eq!(id.as_str().parse::<SandboxId>().unwrap(), id);
        assert_eq!("python-3.11".parse::<TemplateName>().unwrap().as_str(), "python-3.11");
    }
}
