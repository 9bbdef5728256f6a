//! E2B's API, as its unmodified clients call it: both generations of paths.

mod answer;
mod body;
mod builds;
mod events;
mod life;
mod logs;
mod metrics;
mod network;
mod owner;
mod query;
pub(crate) mod router;
mod sandboxes;
mod snapshots;
mod tag_groups;
mod tags;
mod templates;
mod unbuilt;
mod uploads;
mod webhooks;
