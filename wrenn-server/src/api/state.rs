//! What each request is answered from.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::service::rate::Rates;
use crate::service::sandboxes::Sandboxes;
use crate::service::secret::Secret;
use crate::service::webhooks::Webhooks;
use crate::store::contract::Store;

/// What each request is answered from.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// The sandboxes.
    pub(crate) sandboxes: Arc<Sandboxes>,
    /// The keys.
    pub(crate) store: Arc<dyn Store>,
    /// What each key has sent.
    pub(crate) rates: Arc<Rates>,
    /// What the sandboxes' tokens are made of.
    pub(crate) secret: Arc<Secret>,
    /// Where the keys want to be told what happens.
    pub(crate) webhooks: Arc<Webhooks>,
    /// A permit for each stream that there may be.
    pub(crate) streams: Arc<Semaphore>,
    /// Whether each request needs a key.
    pub(crate) needs_key: bool,
    /// The domain below which each port of each sandbox has a name, if there is one.
    pub(crate) domain: Option<Arc<str>>,
    /// What clients reach this server by: `http` or `https`.
    pub(crate) scheme: &'static str,
}
