//! Changes in the guest's files, as they happen.

use std::sync::Arc;
use std::time::Duration;

use wrenn_envd::proto::filesystem::{EventType, FilesystemEvent};

use crate::agent::files::WatchStream;
use crate::error::{Error, Result};
use crate::patience::patient;
use crate::sandbox::handle::Sandbox;

/// A watch to set up and start: see [`Sandbox::watch`].
#[derive(Debug, Clone)]
pub struct WatchBuilder {
    sandbox: Sandbox,
    path: String,
    user: Option<String>,
    recursive: bool,
}

/// A directory that is being watched. Dropping it ends the watch. It keeps the sandbox alive.
#[derive(Debug)]
pub struct Watcher {
    sandbox: Sandbox,
    stream: WatchStream,
}

/// Something that happened in a watched directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// What.
    pub kind: ChangeKind,
    /// The path below the watched directory; `.` is the directory itself.
    pub path: String,
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeKind {
    /// It is there now: made, or renamed to this.
    Created,
    /// Its contents were written to.
    Written,
    /// It is gone.
    Removed,
    /// It was renamed; the new name follows as [`Created`](Self::Created) where it is in sight.
    RenamedAway,
    /// Its owner, its mode or its attributes were changed.
    Attributes,
}

impl Sandbox {
    /// Watches a directory of the guest.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// let mut watcher = sandbox.watch("/home/user/src").recursive().start().await?;
    /// while let Some(change) = watcher.next().await? {
    ///     println!("{:?} {}", change.kind, change.path);
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn watch(&self, path: impl Into<String>) -> WatchBuilder {
        WatchBuilder { sandbox: self.clone(), path: path.into(), user: None, recursive: false }
    }
}

impl WatchBuilder {
    /// Watches the directories below it, too, and those that are made later.
    #[must_use]
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    /// As another of the guest's users. Default: `user`.
    #[must_use]
    pub fn as_user(mut self, name: impl Into<String>) -> Self {
        self.user = Some(name.into());
        self
    }

    /// Starts the watch: what happens after this returns is told.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is no such directory, [`Error::InvalidInput`] where it is none,
    /// [`Error::InvalidState`] where the sandbox does not run, [`Error::Agent`] otherwise, and where the guest takes longer
    /// than five minutes or is silent for half a minute.
    ///
    /// # Cancel-Safety
    /// Cancelling ends the watch.
    pub async fn start(self) -> Result<Watcher> {
        let agent = Arc::clone(self.sandbox.agent());
        let start = agent.watch_dir(&self.path, self.recursive, self.user.as_deref());
        let start = agent.bounded(Some(patient(START_MAX)), start);
        let stream = self.sandbox.while_running(WATCH, async { start.await.map_err(Error::file(WATCH)) }).await?;
        Ok(Watcher { sandbox: self.sandbox.clone(), stream })
    }
}

impl Watcher {
    /// Waits for the next change; `None` when the directory is gone.
    ///
    /// # Errors
    /// After an error nothing follows: list the directory, and watch anew. [`Error::InvalidState`] as soon as the sandbox
    /// no longer runs; [`Error::Agent`] where changes came faster than they were read (`data_loss`), the connection broke,
    /// or the guest answers nothing for half a minute.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    pub async fn next(&mut self) -> Result<Option<Change>> {
        let Self { stream, sandbox } = self;
        let agent = sandbox.agent();
        let next = async {
            loop {
                match agent.bounded(None, stream.next()).await.map_err(Error::file(WATCH))? {
                    Some(event) => {
                        if let Some(change) = change(event) {
                            return Ok(Some(change));
                        }
                    }
                    None => return Ok(None),
                }
            }
        };
        sandbox.while_running(WATCH, next).await
    }
}

/// From the wire; `None` for what a newer agent may say.
fn change(event: FilesystemEvent) -> Option<Change> {
    let kind = match event.r#type.as_known()? {
        EventType::EVENT_TYPE_CREATE => ChangeKind::Created,
        EventType::EVENT_TYPE_WRITE => ChangeKind::Written,
        EventType::EVENT_TYPE_REMOVE => ChangeKind::Removed,
        EventType::EVENT_TYPE_RENAME => ChangeKind::RenamedAway,
        EventType::EVENT_TYPE_CHMOD => ChangeKind::Attributes,
        EventType::EVENT_TYPE_UNSPECIFIED => return None,
    };
    Some(Change { kind, path: event.name })
}

const WATCH: &str = "watch a directory";

/// For a deep tree, whose directories are all watched one by one.
const START_MAX: Duration = Duration::from_secs(300);
