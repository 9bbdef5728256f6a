//! What each request is answered from.

use std::sync::Arc;

use crate::service::sandboxes::Sandboxes;
use crate::store::contract::Store;

/// What each request is answered from.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// The sandboxes.
    pub(crate) sandboxes: Arc<Sandboxes>,
    /// The keys.
    pub(crate) store: Arc<dyn Store>,
    /// Whether each request needs a key.
    pub(crate) needs_key: bool,
}
