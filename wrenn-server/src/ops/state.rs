//! What the operator's requests are answered from.

use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::ops::traffic::Traffic;
use crate::ops::world::World;
use crate::service::readiness::Readiness;
use crate::service::sandboxes::Sandboxes;
use crate::store::contract::Store;

/// What the operator's requests are answered from.
#[derive(Debug, Clone)]
pub(crate) struct Ops {
    pub(super) store: Arc<dyn Store>,
    pub(super) sandboxes: Arc<Sandboxes>,
    pub(super) readiness: Arc<Readiness>,
    /// Whether who reads the metrics from elsewhere needs a key.
    pub(super) needs_key: bool,
    pub(super) traffic: Traffic,
    pub(super) world: Arc<World>,
    /// What is counted here, beside the meters of the sandboxes.
    pub(super) registry: Arc<Registry>,
}

impl Ops {
    /// The operator's view of a server.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        sandboxes: Arc<Sandboxes>,
        readiness: Arc<Readiness>,
        needs_key: bool,
    ) -> Self {
        let (traffic, world) = (Traffic::default(), Arc::new(World::new(Arc::clone(&sandboxes))));
        let mut registry = Registry::default();
        traffic.register(&mut registry);
        world.register(&mut registry);
        Self { store, sandboxes, readiness, needs_key, traffic, world, registry: Arc::new(registry) }
    }
}
