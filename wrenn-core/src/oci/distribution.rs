//! Which distribution an image is of: `ID` and `VERSION_ID` of `os-release`.

use serde::{Deserialize, Serialize};

/// A distribution, `debian` 12 for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Distribution {
    pub(crate) id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
}

impl Distribution {
    /// `None` where the text of an `os-release` has no `ID`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(Self { id: value(text, "ID")?, version: value(text, "VERSION_ID") })
    }
}

/// <https://www.freedesktop.org/software/systemd/man/latest/os-release.html>
fn value(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?.trim();
    let value = value.trim_matches(['"', '\'']);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (!value.is_empty() && value.len() <= BYTES_MAX && value.bytes().all(plain)).then(|| value.to_owned())
}

const BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_what_os_release_says() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
        let expected = Distribution { id: "debian".to_owned(), version: Some("12".to_owned()) };
        assert_eq!(Distribution::parse(text), Some(expected));
        let rolling = Distribution { id: "arch".to_owned(), version: None };
        assert_eq!(Distribution::parse("ID='arch'\nVERSION_ID=$(date)\n"), Some(rolling));
        assert_eq!(Distribution::parse("NAME=x\nID=a/b\n"), None);
    }
}
