//! Builds of templates: what was asked for, how far each is, and what it has told.
//!
//! ```text
//!  request ──▶ Build: waiting ──▶ building ──▶ ready, error or cancelled ──▶ forgotten after a while
//!                 files ──▶ unpack ─┘  │
//!                                     log
//! ```
//!
//! A build is in memory alone. What a server's end cuts off is gone, and the steps that it had done are found by the next build.

pub mod files;
mod images;
pub mod log;
pub mod recipe;
pub mod registries;
mod unpack;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::service::builds::files::Files;
use crate::service::builds::log::{Entry, Level, Log};
use crate::service::builds::registries::Registries;
use crate::service::clock::now_ms;
use crate::service::error::ServiceError;

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
}

/// What a build is to make.
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
        Self { all: Mutex::default(), turns: Mutex::default(), tasks: Mutex::default(), files, registries }
    }

    /// Notes that a build was asked for.
    ///
    /// # Errors
    /// [`ServiceError::LimitReached`] where the key has as many that are not over as it may.
    pub(super) fn add(&self, owner: &str, wanted: Wanted) -> Result<Arc<Build>, ServiceError> {
        let mut all = lock(&self.all);
        let now = now_ms();
        all.retain(|build| !build.is_forgotten(now));
        if all.iter().filter(|build| build.owner == owner && !build.is_over()).count() >= UNDER_WAY_MAX {
            return Err(ServiceError::LimitReached { what: "builds under way", max: UNDER_WAY_MAX as u64 });
        }
        // The oldest first, since they are in their order.
        forget_oldest(&mut all, KEPT_OF_KEY_MAX, |build| build.owner == owner);
        forget_oldest(&mut all, KEPT_MAX, |_| true);
        let template = format!("b-{:016x}", rand::random::<u64>());
        let moment = Moment { status: BuildStatus::Requested, reason: None, changed_at_ms: now };
        let build = Arc::new(Build {
            id: build_id(&template),
            owner: owner.to_owned(),
            wanted,
            template,
            created_at_ms: now,
            stop: CancellationToken::new(),
            state: Mutex::new(State { moment, log: Log::default() }),
        });
        all.push(Arc::clone(&build));
        Ok(build)
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
        matches!(self.now().status, BuildStatus::Ready | BuildStatus::Error | BuildStatus::Cancelled)
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

/// Makes room for one more, among those that are over.
fn forget_oldest(all: &mut Vec<Arc<Build>>, kept: usize, is_meant: impl Fn(&Build) -> bool) {
    let mut excess = (all.iter().filter(|build| is_meant(build)).count() + 1).saturating_sub(kept);
    all.retain(|build| {
        let is_out = excess > 0 && is_meant(build) && build.is_over();
        excess -= usize::from(is_out);
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
        let first = all.add("ada", wanted()).expect("it may");
        for _ in 1..UNDER_WAY_MAX {
            all.add("ada", wanted()).expect("it may");
        }
        assert!(matches!(all.add("ada", wanted()), Err(ServiceError::LimitReached { .. })));
        all.add("eve", wanted()).expect("another may");
        assert!(first.go_on(&[BuildStatus::Requested], BuildStatus::Cancelled, None));
        assert!(!first.go_on(&[BuildStatus::Requested], BuildStatus::Waiting, None));
        all.add("ada", wanted()).expect("it may again");
        assert!(all.find("ada", &first.id).is_some() && all.find("eve", &first.id).is_none());
        for _ in 0..KEPT_OF_KEY_MAX {
            let one = all.add("eve", wanted()).expect("it may");
            assert!(one.go_on(&[BuildStatus::Requested], BuildStatus::Error, None));
        }
        assert_eq!(all.of("eve").len(), KEPT_OF_KEY_MAX);
        assert!(all.find("ada", &first.id).is_some());
    }
}
