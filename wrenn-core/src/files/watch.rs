//! Changes in the guest's files, as they happen.

use std::sync::Arc;
use std::time::Duration;

use wrenn_envd::proto::filesystem::{EventType, FilesystemEvent};

use crate::agent::files::WatchStream;
use crate::error::{Error, Result};
use crate::patience::patient;
use crate::sandbox::handle::Sandbox;

/// The options of a watch, made by [`Sandbox::watch`].
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let watcher = sandbox.watch("/var/log").recursive().as_user("root").start().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct WatchBuilder {
    sandbox: Sandbox,
    path: String,
    user: Option<String>,
    recursive: bool,
}

/// A watch of a directory of the guest. It keeps the sandbox alive. Dropping it ends the watch.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let mut watcher = sandbox.watch("out").start().await?;
/// sandbox.write_file("out/result", "42").await?;
/// println!("{:?}", watcher.next().await?);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Watcher {
    sandbox: Sandbox,
    stream: WatchStream,
}

/// A change of a file in a watched directory.
///
/// ```
/// use wrenn_core::{Change, ChangeKind};
///
/// fn is_result(change: &Change) -> bool {
///     change.kind == ChangeKind::Written && change.path.ends_with(".csv")
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// What happened to the file.
    pub kind: ChangeKind,
    /// The path of the file, relative to the watched directory; `.` is the directory itself.
    pub path: String,
}

/// What happened to a file.
///
/// ```
/// use wrenn_core::ChangeKind;
///
/// fn is_gone(kind: ChangeKind) -> bool {
///     matches!(kind, ChangeKind::Removed | ChangeKind::RenamedAway)
/// }
///
/// assert!(is_gone(ChangeKind::Removed) && !is_gone(ChangeKind::Written));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeKind {
    /// The file is there now: it was made, or another file was renamed to this name.
    Created,
    /// The contents were written to.
    Written,
    /// The file was removed.
    Removed,
    /// The file was renamed. The new name follows as [`Created`](Self::Created) where it is in a watched directory.
    RenamedAway,
    /// The owner, the mode or the attributes were changed.
    Attributes,
}

impl Sandbox {
    /// Watches a directory of the guest for changes of its files.
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
    /// Watches the directories below the directory too, also those that are made later. Default: the directory alone.
    #[must_use]
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    /// The user of the guest whose rights and home the watch has. Default: `user`.
    #[must_use]
    pub fn as_user(mut self, name: impl Into<String>) -> Self {
        self.user = Some(name.into());
        self
    }

    /// Starts the watch. Every change after this returns is reported.
    ///
    /// # Errors
    /// [`Error::NotFound`] where nothing lies at the path, [`Error::InvalidInput`] where it is not a directory,
    /// [`Error::InvalidState`] where the sandbox does not run. [`Error::Agent`] for other reasons of the guest, and
    /// where the guest takes longer than five minutes or answers nothing for half a minute.
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
    /// [`Error::InvalidState`] as soon as the sandbox no longer runs. [`Error::Agent`] where changes came faster than
    /// they were read (`data_loss`), where the connection broke, or where the guest answers nothing for half a minute.
    /// No change follows an error: start another watch, and list the directory to see what was missed.
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

/// Reads a change from the protocol; `None` for a kind that only a newer agent knows.
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

/// Starting a watch of a deep tree takes long, since the guest watches each of its directories.
const START_MAX: Duration = Duration::from_secs(300);
