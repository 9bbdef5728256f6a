//! A build as its record has it, so that it is told of after the server's end.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::service::builds::log::{Entry, Log};
use crate::service::builds::{Build, BuildStatus, Moment, Reason, State, Wanted, lock};
use crate::store::records::BuildRecord;

/// What no query asks about.
#[derive(Serialize, Deserialize)]
struct Told {
    wanted: Wanted,
    template: String,
    status: BuildStatus,
    reason: Option<Reason>,
    log: Vec<Entry>,
}

impl Build {
    /// What is kept of it now, with the end of its log where it is over.
    pub(in crate::service) fn record(&self) -> Result<BuildRecord, serde_json::Error> {
        let state = lock(&self.state);
        let Moment { status, reason, changed_at_ms } = state.moment.clone();
        let log = if status.is_over() { state.log.tail(LOG_BYTES_MAX) } else { Vec::new() };
        let told = Told { wanted: self.wanted.clone(), template: self.template.clone(), status, reason, log };
        Ok(BuildRecord {
            id: self.id.clone(),
            owner: self.owner.clone(),
            created_at_ms: self.created_at_ms,
            changed_at_ms,
            told: serde_json::to_value(told)?,
        })
    }

    /// A build of an earlier server, as that one has noted it last.
    pub(super) fn of(record: &BuildRecord) -> Result<Self, serde_json::Error> {
        let Told { wanted, template, status, reason, log } = Told::deserialize(&record.told)?;
        let moment = Moment { status, reason, changed_at_ms: record.changed_at_ms };
        Ok(Self {
            id: record.id.clone(),
            owner: record.owner.clone(),
            wanted,
            template,
            created_at_ms: record.created_at_ms,
            stop: CancellationToken::new(),
            state: Mutex::new(State { moment, log: Log::of(log) }),
        })
    }
}

/// What is kept of the log of each build. A day has a thousand builds, and more.
const LOG_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::builds::log::Level;

    #[test]
    fn a_build_that_is_over_is_the_same_after_the_servers_end_with_the_end_of_its_log() {
        let wanted = Wanted { name: "app".to_owned(), tags: vec!["v1".to_owned()], vcpus: Some(2), memory_mib: None };
        let build = Build::new("ada", wanted, 5);
        for number in 0..2000 {
            build.tell(Level::Info, Some("1"), &format!("line {number} {}", "x".repeat(80)));
        }
        let under_way = build.record().expect("it can be kept");
        assert!(under_way.told["log"].as_array().is_some_and(Vec::is_empty));
        let reason = Reason { message: "it failed".to_owned(), step: Some("1".to_owned()) };
        assert!(build.go_on(&[BuildStatus::Requested], BuildStatus::Error, Some(reason.clone())));
        let record = build.record().expect("it can be kept");
        assert!(record.told.to_string().len() < 2 * LOG_BYTES_MAX);
        let again = Build::of(&record).expect("it is understood");
        assert_eq!((&again.id, &again.owner, again.created_at_ms), (&build.id, &build.owner, 5));
        assert_eq!((again.now().status, again.now().reason), (BuildStatus::Error, Some(reason)));
        assert_eq!(again.now().changed_at_ms, build.now().changed_at_ms);
        let (kept, whole) = (again.log(Level::Debug, 0, 5000), build.log(Level::Debug, 0, 5000));
        assert!(kept[0].message.contains("earlier entries"), "{:?}", kept[0]);
        assert!(kept.len() > 100 && kept.len() < 1000 && whole.ends_with(&kept[1..]), "{}", kept.len());
        assert_eq!(again.record().expect("it can be kept"), record, "it stays what it is");
    }
}
