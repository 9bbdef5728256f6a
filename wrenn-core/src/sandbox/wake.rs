//! The resume of a sandbox that a connection has woken.

use std::sync::{Arc, Weak};

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::sandbox::paused::PausedSandbox;
use crate::sandbox::registry::Registry;
use crate::sandbox::shared::Shared;

/// Runs a paused sandbox again, for nobody in particular.
pub(crate) fn wake(registry: Weak<Registry>, id: SandboxId) -> BoxFuture<'static, Result<Arc<Shared>>> {
    async move {
        let gone = || Error::failed("wake the sandbox")("its host is gone".into());
        let registry = registry.upgrade().ok_or_else(gone)?;
        PausedSandbox::find(registry, &id).await?.restart().await
    }
    .boxed()
}
