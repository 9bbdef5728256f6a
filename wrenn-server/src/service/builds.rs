//! Builds of templates: what was asked for, how far each is, and what it has told.
//!
//! ```text
//!  request ──▶ Build: waiting ──▶ building ──▶ ready, error or cancelled ──▶ forgotten after a while
//!                 files ──▶ unpack ─┘  │
//!                                     log
//! ```
//!
//! Each change of its status is kept in a record, with the end of its log once it is over. A build that a server's end cuts off
//! has failed by that, and the steps that it had done are found by the next build.

pub mod files;
mod images;
mod kept;
pub mod log;
pub mod recipe;
pub mod registries;
mod unpack;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::{RwLock, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::service::builds::files::Files;
use crate::service::builds::log::{Entry, Level, Log};
use crate::service::builds::registries::Registries;
use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::store::records::BuildRecord;

pub use crate::service::builds::images::is_pulled;
pub(super) use crate::service::builds::images::pulled;
pub(super) use crate::service::builds::unpack::unpack;

/// The builds that are known, and what they need besides sandboxes.
#[derive(Debug)]
pub(super) struct Builds {
    all: Mutex<Vec<Arc<Build>>>,
    /// How many builds of each key may go on at once.
    turns: Mutex<HashMap<String, Arc<Semaphore>>>,
    tasks: Mutex<JoinSet<()>>,
    pub(super) files: Files,
    pub(super) registries: Registries,
    /// Read by each pull, from its record to its image; written by who removes both.
    pub(super) pulling: RwLock<()>,
}

/// What a build is to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Wanted {
    /// The name of the template.
    pub name: String,
    /// The tags of the name that are to stand for it, as they are kept; one at least.
    pub tags: Vec<String>,
    /// Its virtual processors; `None` takes those of what it begins with.
    pub vcpus: Option<u32>,
    /// Its memory, in MiB; `None` takes that of what it begins with.
    pub memory_mib: Option<u32>,
}

impl Wanted {
    /// Whether there are machines of that size at all: a build waits for its turn, and would be refused after it.
    ///
    /// # Errors
    /// [`ServiceError::BadBuild`].
    pub(super) fn check(&self) -> Result<(), ServiceError> {
        let none = |what, has: u32, [min, max]: [u32; 2]| {
            let why = format!("a template has {min} to {max} {what}, and this one was to have {has}: ask for others");
            Err(ServiceError::BadBuild { why })
        };
        match (self.vcpus, self.memory_mib) {
            (Some(vcpus), _) if !(VCPUS[0]..=VCPUS[1]).contains(&vcpus) => none("virtual processors", vcpus, VCPUS),
            (_, Some(mib)) if !(MEMORY_MIB[0]..=MEMORY_MIB[1]).contains(&mib) => none("MiB of memory", mib, MEMORY_MIB),
            _ => Ok(()),
        }
    }
}

/// A build of a template.
#[derive(Debug)]
pub struct Build {
    /// By which clients name it.
    pub id: String,
    /// The [id](crate::store::records::KeyRecord::id) of its key.
    pub owner: String,
    /// What it is to make.
    pub wanted: Wanted,
    /// The name that `wrenn-core` knows the template by.
    pub template: String,
    /// When it was asked for, in milliseconds since 1970.
    pub created_at_ms: i64,
    pub(super) stop: CancellationToken,
    state: Mutex<State>,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildStatus {
    /// It was asked for, and its recipe has not come.
    Requested,
    /// It waits for its turn.
    Waiting,
    /// Its steps are done.
    Building,
    /// The template is there.
    Ready,
    /// It failed.
    Error,
    /// It was cancelled.
    Cancelled,
}

/// Why a build has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// What went wrong.
    pub message: String,
    /// In which step, by the name that the recipe's client has for it.
    pub step: Option<String>,
}

/// A build at one moment.
#[derive(Debug, Clone)]
pub struct Moment {
    /// How far it is.
    pub status: BuildStatus,
    /// Why it failed.
    pub reason: Option<Reason>,
    /// When its status last changed, in milliseconds since 1970.
    pub changed_at_ms: i64,
}

#[derive(Debug)]
struct State {
    moment: Moment,
    log: Log,
}

impl Reason {
    /// The same without what the recipe and its commands have said, which may be a secret.
    pub(super) fn brief(&self) -> String {
        match &self.step {
            Some(step) => format!("its step {step} failed"),
            None => self.message.lines().next().unwrap_or_default().to_owned(),
        }
    }
}

impl Builds {
    pub(super) fn new(files: Files, registries: Registries) -> Self {
        let (all, turns, tasks) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { all, turns, tasks, files, registries, pulling: RwLock::default() }
    }

    /// Notes that a build was asked for. Gives the ids of those, too, that are forgotten for it.
    ///
    /// # Errors
    /// [`ServiceError::LimitReached`] where the key has as many that are not over as it may.
    pub(super) fn add(&self, owner: &str, wanted: Wanted) -> Result<(Arc<Build>, Vec<String>), ServiceError> {
        let mut all = lock(&self.all);
        let now = now_ms();
        let is_under_way = |build: &&Arc<Build>| build.owner == owner && !build.is_over() && !build.is_forgotten(now);
        if all.iter().filter(is_under_way).count() >= UNDER_WAY_MAX {
            return Err(ServiceError::LimitReached { what: "builds under way", max: UNDER_WAY_MAX as u64 });
        }
        let mut forgotten = Vec::new();
        // The oldest first, since they are in their order.
        forget(&mut all, &mut forgotten, usize::MAX, |build| build.is_forgotten(now));
        let of_owner = all.iter().filter(|build| build.owner == owner).count() + 1;
        forget(&mut all, &mut forgotten, of_owner.saturating_sub(KEPT_OF_KEY_MAX), |build| build.owner == owner);
        let excess = (all.len() + 1).saturating_sub(KEPT_MAX);
        forget(&mut all, &mut forgotten, excess, |_| true);
        let build = Arc::new(Build::new(owner, wanted, now));
        all.push(Arc::clone(&build));
        Ok((build, forgotten))
    }

    /// Takes over the builds of an earlier server, the oldest first. Gives them, and the ids of records that are not kept: their
    /// time is over, or they cannot be understood.
    pub(super) fn recall(&self, records: &[BuildRecord]) -> (Vec<Arc<Build>>, Vec<String>) {
        let (mut recalled, mut forgotten, now) = (Vec::new(), Vec::new(), now_ms());
        for record in records {
            match Build::of(record) {
                Ok(build) if !build.is_forgotten(now) => recalled.push(Arc::new(build)),
                Ok(_) => forgotten.push(record.id.clone()),
                Err(error) => {
                    tracing::warn!(build = record.id, %error, "the record of a build is not understood, and is removed");
                    forgotten.push(record.id.clone());
                }
            }
        }
        lock(&self.all).extend(recalled.iter().cloned());
        (recalled, forgotten)
    }

    /// A build of an owner's.
    pub(super) fn find(&self, owner: &str, id: &str) -> Option<Arc<Build>> {
        lock(&self.all).iter().find(|build| build.owner == owner && build.id == id).cloned()
    }

    /// The builds of an owner, the newest first.
    pub(super) fn of(&self, owner: &str) -> Vec<Arc<Build>> {
        lock(&self.all).iter().rev().filter(|build| build.owner == owner).cloned().collect()
    }

    /// Of how many builds of the owner's one may go on.
    pub(super) fn turns(&self, owner: &str) -> Arc<Semaphore> {
        let new = || Arc::new(Semaphore::new(AT_ONCE_MAX));
        Arc::clone(lock(&self.turns).entry(owner.to_owned()).or_insert_with(new))
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Cancels what is under way, and waits until its guests have ended.
    pub(super) async fn close(&self) {
        lock(&self.all).iter().for_each(|build| build.stop.cancel());
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        while tasks.join_next().await.is_some() {}
    }
}

impl Build {
    fn new(owner: &str, wanted: Wanted, now: i64) -> Self {
        let template = format!("b-{:016x}", rand::random::<u64>());
        let moment = Moment { status: BuildStatus::Requested, reason: None, changed_at_ms: now };
        Self {
            id: build_id(&template),
            owner: owner.to_owned(),
            wanted,
            template,
            created_at_ms: now,
            stop: CancellationToken::new(),
            state: Mutex::new(State { moment, log: Log::default() }),
        }
    }

    /// How far it is.
    #[must_use]
    pub fn now(&self) -> Moment {
        lock(&self.state).moment.clone()
    }

    /// The entries of its log of a level or a higher one, beyond the first `skipped` of these.
    #[must_use]
    pub fn log(&self, least: Level, skipped: usize, len_max: usize) -> Vec<Entry> {
        lock(&self.state).log.page(least, skipped, len_max)
    }

    /// The last entries of its log that are of a step.
    #[must_use]
    pub fn log_of_step(&self, step: &str, len_max: usize) -> Vec<Entry> {
        lock(&self.state).log.of_step(step, len_max)
    }

    /// Whether nothing more will come of it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.now().status.is_over()
    }

    pub(super) fn tell(&self, level: Level, step: Option<&str>, message: &str) {
        lock(&self.state).log.add(now_ms(), level, step, message);
    }

    /// Has it be at `status`, if it is at one of `before`. Tells whether it was.
    pub(super) fn go_on(&self, before: &[BuildStatus], status: BuildStatus, reason: Option<Reason>) -> bool {
        let mut state = lock(&self.state);
        let is_right = before.contains(&state.moment.status);
        if is_right {
            state.moment = Moment { status, reason, changed_at_ms: now_ms() };
        }
        is_right
    }

    fn is_forgotten(&self, now: i64) -> bool {
        let Moment { status, changed_at_ms, .. } = self.now();
        let kept = if status == BuildStatus::Requested { REQUESTED_MS } else { KEPT_MS };
        (status == BuildStatus::Requested || self.is_over()) && changed_at_ms < now - kept
    }
}

impl BuildStatus {
    fn is_over(self) -> bool {
        matches!(self, Self::Ready | Self::Error | Self::Cancelled)
    }

    /// The name of it in answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Requested | Self::Waiting => "waiting",
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }

    /// The same of E2B's, which has no word for what was cancelled.
    #[must_use]
    pub fn e2b_name(self) -> &'static str {
        if self == Self::Cancelled { Self::Error.name() } else { self.name() }
    }
}

/// The name of the build that has made a template, which E2B's clients take for a UUID (version 8 of RFC 9562). A template has
/// one build, so that it follows from the template's name.
#[must_use]
pub fn build_id(template: &str) -> String {
    uuid_of(template)
}

/// A UUID that follows from a text.
#[must_use]
pub fn uuid_of(text: &str) -> String {
    let digest = Sha256::digest(text);
    let mut digits: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    digits.replace_range(12..13, "8");
    digits.replace_range(16..17, "8");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| digits.get(part).unwrap_or_default());
    parts.join("-")
}

/// Takes away up to `count` of those that are meant, and that nothing more will come of. Their ids go to `forgotten`.
fn forget(all: &mut Vec<Arc<Build>>, forgotten: &mut Vec<String>, mut count: usize, is_meant: impl Fn(&Build) -> bool) {
    let now = now_ms();
    all.retain(|build| {
        let is_out = count > 0 && is_meant(build) && (build.is_over() || build.is_forgotten(now));
        if is_out {
            count -= 1;
            forgotten.push(build.id.clone());
        }
        !is_out
    });
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of one key. The next ones wait.
const AT_ONCE_MAX: usize = 4;
/// Of one key, with those that wait.
const UNDER_WAY_MAX: usize = 50;
/// The least and the most that the library takes.
const VCPUS: [u32; 2] = [1, 32];
const MEMORY_MIB: [u32; 2] = [128, 64 << 10];
const KEPT_OF_KEY_MAX: usize = 100;
/// Each has a log of up to a MiB.
const KEPT_MAX: usize = 400;
/// A day.
const KEPT_MS: i64 = 24 * 3600 * 1000;
/// For the files to come.
const REQUESTED_MS: i64 = 2 * 3600 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn builds() -> Builds {
        Builds::new(Files::new("/nonexistent".into()), Registries::default())
    }

    fn wanted() -> Wanted {
        Wanted { name: "app".to_owned(), tags: vec!["default".to_owned()], vcpus: None, memory_mib: None }
    }

    #[test]
    fn a_key_has_some_builds_under_way_and_the_oldest_that_are_over_are_forgotten() {
        let all = builds();
        let (first, _) = all.add("ada", wanted()).expect("it may");
        for _ in 1..UNDER_WAY_MAX {
            all.add("ada", wanted()).expect("it may");
        }
        assert!(matches!(all.add("ada", wanted()), Err(ServiceError::LimitReached { .. })));
        all.add("eve", wanted()).expect("another may");
        assert!(first.go_on(&[BuildStatus::Requested], BuildStatus::Cancelled, None));
        assert!(!first.go_on(&[BuildStatus::Requested], BuildStatus::Waiting, None));
        all.add("ada", wanted()).expect("it may again");
        assert!(all.find("ada", &first.id).is_some() && all.find("eve", &first.id).is_none());
        let (mut ids, mut forgotten) = (Vec::new(), Vec::new());
        for _ in 0..KEPT_OF_KEY_MAX {
            let (one, gone) = all.add("eve", wanted()).expect("it may");
            ids.push(one.id.clone());
            forgotten.extend(gone);
            assert!(one.go_on(&[BuildStatus::Requested], BuildStatus::Error, None));
        }
        assert_eq!(all.of("eve").len(), KEPT_OF_KEY_MAX);
        assert_eq!(forgotten, ids[..1], "the oldest that is over made room for the last one");
        assert!(all.find("ada", &first.id).is_some());
    }
}
