use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;

/// What became of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GuestEventKind {
    /// It is a new sandbox, made from a template.
    Created,
    /// It goes on after a pause.
    Resumed,
    /// It is a copy of a sandbox that may go on, too.
    Forked,
    /// It goes on as itself after it stood still, such as while a snapshot of it was taken.
    Continued,
}

impl GuestEventKind {
    /// The word for it, as hooks and clients see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Resumed => "resumed",
            Self::Forked => "forked",
            Self::Continued => "continued",
        }
    }
}

/// One of the events of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestEvent {
    /// Counts the events of this guest and of those that it descends from, from 1.
    pub number: u64,
    /// What happened.
    pub event: GuestEventKind,
    /// When, by the guest's clock, after that was set.
    pub timestamp: Timestamp,
}

/// The answer of `GET /events?after=NUMBER`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsResponse {
    /// Every event after that number that is still known, the oldest first. Empty when none came for a while.
    pub events: Vec<GuestEvent>,
}
