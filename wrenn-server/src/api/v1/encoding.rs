//! How bytes are put into JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How bytes are written as a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub(super) enum Encoding {
    /// As the text that they are.
    #[serde(rename = "utf-8")]
    Utf8,
    /// As RFC 4648 has it in section 4, with padding.
    #[serde(rename = "base64")]
    Base64,
}
