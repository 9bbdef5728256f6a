//! Extended attributes, as they stand behind an inode.

use std::collections::BTreeMap;

use crate::erofs::format::{XATTR_HEADER_BYTES, put16};

/// Why an attribute cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AttributeError {
    /// The kernel has no number for the part of the name before its first dot.
    #[error("the attribute is of a class that this file system does not have")]
    Class,
    #[error("the attribute's name is longer than 255 bytes")]
    Name,
    #[error("the attribute's value is longer than 65535 bytes")]
    Value,
}

/// Whether an attribute can be written.
pub(crate) fn check(name: &[u8], value: &[u8]) -> Result<(), AttributeError> {
    let (_, rest) = class(name).ok_or(AttributeError::Class)?;
    if u8::try_from(rest.len()).is_err() {
        return Err(AttributeError::Name);
    }
    if u16::try_from(value.len()).is_err() {
        return Err(AttributeError::Value);
    }
    Ok(())
}

/// The attributes' bytes. What [`check`] refuses is left out. `None` where together they are more than an inode can have.
pub(super) fn encode(attributes: &BTreeMap<Vec<u8>, Vec<u8>>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for (name, value) in attributes {
        let Some((number, rest)) = class(name) else { continue };
        let (Ok(name_bytes), Ok(value_bytes)) = (u8::try_from(rest.len()), u16::try_from(value.len())) else {
            continue;
        };
        if out.is_empty() {
            out.resize(XATTR_HEADER_BYTES, 0);
        }
        out.extend([name_bytes, number]);
        put16(&mut out, value_bytes);
        out.extend(rest);
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    (out.len() <= AREA_BYTES_MAX).then_some(out)
}

/// The number of an attribute's class, and the name within the class.
fn class(name: &[u8]) -> Option<(u8, &[u8])> {
    let whole = [(&b"system.posix_acl_access"[..], 2), (b"system.posix_acl_default", 3)];
    if let Some((_, number)) = whole.into_iter().find(|(known, _)| *known == name) {
        return Some((number, &[]));
    }
    let prefixes = [(&b"user."[..], 1), (b"trusted.", 4), (b"security.", 6)];
    prefixes
        .into_iter()
        .find_map(|(prefix, number)| name.strip_prefix(prefix).map(|rest| (number, rest)))
        .filter(|(_, rest)| !rest.is_empty())
}

/// What the 16 bits for it can say.
const AREA_BYTES_MAX: usize = XATTR_HEADER_BYTES + 4 * 0xfffe;
