//! Copies of a running sandbox.

use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;

use crate::clock::unix_ms;
use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::request::Request;
use crate::sandbox::start::{Origin, start};
use crate::state::Fixed;

impl Sandbox {
    /// Makes `count` copies of the running sandbox, each with its own identity, clock, randomness and token, and the
    /// same memory and files. The sandbox goes on: its memory is copied while it runs, and it stands still for what is
    /// left then, for its devices and its drive ([`save_report`](Self::save_report)).
    ///
    /// # Errors
    /// The outer error is the parent's, which goes on; each child has a result of its own.
    ///
    /// # Cancel-Safety
    /// The capture of a fork that has begun goes on; children that were not handed over are undone.
    pub async fn fork(&self, count: usize) -> Result<Vec<Result<Self>>> {
        if !(1..=FORK_MAX).contains(&count) {
            return Err(Error::invalid(format!("a fork of {count}: ask for 1 to {FORK_MAX} children")));
        }
        let (generation, fixed) = self.request("be forked", Request::Fork).await?;
        let registry = self.registry();
        let captured = Instant::now();
        let children = (0..count).map(|_| {
            let fixed = Fixed { id: SandboxId::random(), created_at_ms: unix_ms(), ..fixed.clone() };
            start(registry, generation.clone(), fixed, Origin::Forked(self.id().clone()), None, captured)
        });
        let children = join_all(children).await.into_iter();
        Ok(children.map(|child| Ok(Self::new(child?, Arc::clone(registry)))).collect())
    }
}

/// The E2B clients ask for as many at most.
const FORK_MAX: usize = 20;
