//! The identity of a guest, as the host tells it to the VMM's metadata service.

use std::fmt;

use sha2::{Digest as _, Sha512};

use crate::id::{SandboxId, TemplateName};

/// What a metadata service tells about a guest.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) sandbox: SandboxId,
    pub(crate) template: TemplateName,
    /// The token that the guest's agent will be given. The service tells only its hash.
    pub(crate) token: String,
}

impl Metadata {
    /// The token's SHA-512, in hexadecimal digits. By it the agent recognizes the host, which knows the token.
    pub(crate) fn token_hash(&self) -> String {
        Sha512::digest(self.token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for Metadata {
    /// Leaves out the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata")
            .field("sandbox", &self.sandbox)
            .field("template", &self.template)
            .finish_non_exhaustive()
    }
}
