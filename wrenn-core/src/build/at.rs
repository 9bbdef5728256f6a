//! The place of a build that the next step goes on from.

use wrenn_snapshot::Generation;

use crate::id::TemplateName;
use crate::site::records::StepRecord;

/// Where a stage is.
#[derive(Debug, Clone)]
pub(super) enum At {
    Base { template: TemplateName, key: String },
    Step { identity: String, record: StepRecord, generation: Generation },
}

impl At {
    /// What the next step's key has of all before it.
    pub(super) fn identity(&self) -> &str {
        match self {
            Self::Base { key, .. } => key,
            Self::Step { identity, .. } => identity,
        }
    }
}
