//! The start of a sandbox: a guest is restored, and a task owns it from then on.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use wrenn_envd::GuestEventKind;
use wrenn_snapshot::Generation;

use crate::error::Result;
use crate::guest::Guest;
use crate::guest::restore::Renewal;
use crate::sandbox::registry::Registry;
use crate::sandbox::shared::Shared;
use crate::sandbox::task::Task;
use crate::site::data_dir::FileLock;
use crate::site::step::Step;
use crate::state::{Fixed, SandboxState};

/// Restores a guest from `generation` and hands out what its handles share.
///
/// # Cancel-Safety
/// Cancelling undoes what was made so far.
pub(crate) async fn start(
    registry: &Arc<Registry>,
    generation: Generation,
    fixed: Fixed,
    event: GuestEventKind,
    lock: Option<FileLock>,
) -> Result<Arc<Shared>> {
    let (id, template, envs) = (fixed.id.clone(), fixed.template.clone(), Some(fixed.envs.clone()));
    let renewal = Renewal { id, template, event, envs };
    let site = &registry.site;
    let guest = Guest::restore(site, generation, &renewal).await?;
    site.observer.at(Step::Ready)?;
    let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
    let (state, watch) = watch::channel(SandboxState::Running);
    let agent = Arc::clone(&guest.agent);
    let shared = Arc::new(Shared { fixed: fixed.clone(), agent, requests, state: watch });
    tokio::spawn(Task::new(Arc::clone(site), guest, fixed, lock, state).run(inbox));
    registry.enrol(&shared);
    Ok(shared)
}

const REQUESTS_MAX: usize = 16;
