//! What handles ask a sandbox's task for.

use tokio::sync::oneshot;
use wrenn_snapshot::Generation;

use crate::error::Result;
use crate::guest::then::SaveReport;
use crate::id::TemplateName;
use crate::sandbox::template::Template;
use crate::site::records::PausedRecord;
use crate::state::Fixed;
use crate::vmm::paging::RestoreReport;

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// A kill has a way of its own, since it does not wait for these.
#[derive(Debug)]
pub(super) enum Request {
    /// What is on disk, and what it took.
    Pause(Reply<(PausedRecord, Option<SaveReport>)>),
    /// The generation that children start from, and what they inherit.
    Fork(Reply<(Generation, Fixed)>),
    Snapshot(TemplateName, Reply<Template>),
    Report(Reply<RestoreReport>),
    SaveReport(Reply<Option<SaveReport>>),
}
