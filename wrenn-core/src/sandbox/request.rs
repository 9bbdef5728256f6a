//! The requests of handles to a sandbox's task.

use tokio::sync::oneshot;
use wrenn_snapshot::Generation;

use crate::error::Result;
use crate::guest::then::SaveReport;
use crate::id::TemplateName;
use crate::sandbox::template::{Taken, Template};
use crate::site::records::PausedRecord;
use crate::state::Fixed;
use crate::vmm::paging::RestoreReport;

/// The channel for the answer to a request.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// A request to a sandbox's task. A kill is not among them: it has a channel of its own, since it does not wait for
/// requests.
#[derive(Debug)]
pub(super) enum Request {
    /// Answers with the record on disk, and how long the pause took.
    Pause(Reply<(PausedRecord, Option<SaveReport>)>),
    /// Answers with the generation that children start from, and the properties that they inherit.
    Fork(Reply<(Generation, Fixed)>),
    /// Answers with the record on disk. The sandbox goes on.
    Checkpoint(Reply<PausedRecord>),
    Snapshot(TemplateName, Taken, Reply<Template>),
    /// Makes the guest trust these certificate authorities, in PEM: not while its drive stands still for a pause or a fork.
    Trust(String, Reply<()>),
    Report(Reply<RestoreReport>),
    SaveReport(Reply<Option<SaveReport>>),
}
