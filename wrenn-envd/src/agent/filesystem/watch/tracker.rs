use std::{
    collections::{HashMap, HashSet},
    io, mem,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InotifyEvent, WatchDescriptor},
};
use rustix::fs::{AtFlags, FileType, statat};

use super::{directory, hub::Membership, inbox::Batch, options::WatchOptions};
use crate::{
    agent::{
        disk::{
            descent::Descent,
            opened::path_of,
            spelling::told,
            temporary::{Upload, upload_of},
        },
        filesystem::{entry::describe, error::FileError, names::Names},
    },
    proto::filesystem::{EventType, FilesystemEvent},
};

/// Whether a watch goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Watching,
    /// The kernel's queue overflowed. The watch goes on with what is there now.
    Lost,
    /// The watched directory is gone.
    Gone,
}

/// Turns the kernel's events into the protocol's, and keeps every directory watched that should be.
///
/// A watch follows its directory, not the directory's name: a rename changes what a watch is called here, and nothing else.
/// A new directory is read once it is watched, so that what came into it before is told as well.
#[derive(Debug)]
pub(super) struct Tracker {
    membership: Membership,
    options: WatchOptions,
    root: WatchDescriptor,
    /// The watched directories, by their paths below the root.
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// What reading a new directory found; the kernel may tell of it once more.
    announced: HashSet<PathBuf>,
    /// How many events have been taken since `announced` was empty.
    taken: usize,
    /// Directories that have left their names, by the kernel's number for the rename.
    leaving: HashMap<u32, PathBuf>,
    /// What happened below them, until it is known where they went.
    held: Vec<Arc<InotifyEvent>>,
    /// The agent's own uploads that are about to get their names.
    uploads: HashMap<u32, Upload>,
    /// Whether there was more to tell than is kept in memory.
    is_lossy: bool,
}

impl Tracker {
    pub(super) fn open(membership: Membership, options: WatchOptions) -> Result<Self, FileError> {
        let opened = directory::open(&options.path, Path::new("")).map_err(FileError::at(&options.path))?;
        let root = add(&membership, &opened)
            .map_err(too_many(&options.path))?
            .ok_or_else(|| FileError::at(&options.path)(io::ErrorKind::NotFound.into()))?;
        let mut tracker = Self {
            membership,
            options,
            root,
            directories: HashMap::from([(root, PathBuf::new())]),
            announced: HashSet::new(),
            taken: 0,
            leaving: HashMap::new(),
            held: Vec::new(),
            uploads: HashMap::new(),
            is_lossy: false,
        };
        tracker.enter(Path::new(""), None)?;
        if tracker.is_lossy {
            let path = tracker.options.path.display();
            return Err(FileError::Invalid(format!("{path} has directories that lie too deep to be watched")));
        }
        Ok(tracker)
    }

    /// Whether it should hear of it when the kernel has nothing more to tell.
    pub(super) fn has_loose_ends(&self) -> bool {
        !(self.announced.is_empty() && self.leaving.is_empty() && self.uploads.is_empty())
    }

    /// Takes what the kernel told; nothing means that it had nothing more to tell.
    pub(super) fn take(&mut self, batch: Batch, events: &mut Vec<FilesystemEvent>) -> Result<State, FileError> {
        if batch.events.is_empty() && !batch.is_lossy {
            self.settle();
            return Ok(State::Watching);
        }
        let mut changes = Vec::new();
        self.is_lossy = batch.is_lossy;
        self.taken += batch.events.len();
        let mut state = State::Watching;
        for event in batch.events {
            if self.take_one(event, &mut changes)? == State::Gone {
                state = State::Gone;
                break;
            }
        }
        if self.taken > QUEUED_MAX {
            // What the kernel had to tell of them it has told.
            self.announced.clear();
            self.taken = 0;
        }
        if self.is_lossy && state == State::Watching {
            state = State::Lost;
            self.settle();
            // Directories may have come that nobody told of.
            self.enter(Path::new(""), None)?;
            self.is_lossy = false;
        }
        self.tell(changes, events);
        Ok(state)
    }

    fn take_one(&mut self, event: Arc<InotifyEvent>, changes: &mut Vec<Change>) -> Result<State, FileError> {
        use AddWatchFlags as Mask;
        let mask = event.mask;
        let Some(directory) = self.directories.get(&event.wd) else { return Ok(State::Watching) };
        let Some(name) = &event.name else { return self.take_own(event.wd, mask, changes) };
        if self.leaving.values().any(|leaving| directory.starts_with(leaving)) {
            self.hold(event);
            return Ok(State::Watching);
        }
        let path = directory.join(name);
        if let Some(upload) = upload_of(name) {
            if mask.contains(Mask::IN_MOVED_FROM) {
                if self.uploads.len() >= UPLOADS_MAX {
                    // They went out of sight, or the kernel would have told where to.
                    self.uploads.clear();
                }
                self.uploads.insert(event.cookie, upload);
            }
            return Ok(State::Watching);
        }
        let is_told = self.announced.remove(&path);
        let is_tree = mask.contains(Mask::IN_ISDIR) && self.options.recursive;
        if mask.contains(Mask::IN_CREATE) {
            self.appear(path, is_told, is_tree, changes)?;
        } else if mask.contains(Mask::IN_MOVED_TO) {
            self.arrive(path, event.cookie, is_told, is_tree, changes)?;
        } else if mask.contains(Mask::IN_MOVED_FROM) {
            // One that could not be watched says nothing of its own.
            if is_tree && self.directories.values().any(|directory| *directory == path) {
                self.leaving.insert(event.cookie, path.clone());
            }
            changes.push((path, EventType::EVENT_TYPE_RENAME));
        } else if mask.contains(Mask::IN_DELETE) {
            changes.push((path, EventType::EVENT_TYPE_REMOVE));
        } else if mask.contains(Mask::IN_MODIFY) {
            changes.push((path, EventType::EVENT_TYPE_WRITE));
        } else if mask.contains(Mask::IN_ATTRIB) {
            changes.push((path, EventType::EVENT_TYPE_CHMOD));
        }
        Ok(State::Watching)
    }

    /// What befell a watched directory itself. Those below the root are told of by the directory that holds them.
    fn take_own(
        &mut self,
        wd: WatchDescriptor,
        mask: AddWatchFlags,
        changes: &mut Vec<Change>,
    ) -> Result<State, FileError> {
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            self.directories.remove(&wd);
            self.membership.remove([wd]);
            return Ok(if wd == self.root { State::Gone } else { State::Watching });
        }
        if mask.contains(AddWatchFlags::IN_MOVE_SELF)
            && let Some(moved) = self.directories.get(&wd).cloned()
            && self.leaving.values().any(|leaving| *leaving == moved)
        {
            // Where it went would have been told before this.
            self.forget_where(|leaving| *leaving == moved);
            self.release(changes)?;
        }
        let own = [
            (AddWatchFlags::IN_ATTRIB, EventType::EVENT_TYPE_CHMOD),
            (AddWatchFlags::IN_MOVE_SELF, EventType::EVENT_TYPE_RENAME),
            (AddWatchFlags::IN_DELETE_SELF, EventType::EVENT_TYPE_REMOVE),
        ];
        if wd == self.root {
            changes
                .extend(own.iter().filter(|(flag, _)| mask.contains(*flag)).map(|(_, kind)| (PathBuf::new(), *kind)));
        }
        Ok(State::Watching)
    }

    /// Keeps an event until it is known where its directory went.
    fn hold(&mut self, event: Arc<InotifyEvent>) {
        if self.held.len() < HELD_MAX {
            self.held.push(event);
        } else {
            self.is_lossy = true;
        }
    }

    /// Takes the events that were held, now that it is known where a directory went.
    fn release(&mut self, changes: &mut Vec<Change>) -> Result<(), FileError> {
        for event in mem::take(&mut self.held) {
            self.take_one(event, changes)?;
        }
        Ok(())
    }

    fn appear(
        &mut self,
        path: PathBuf,
        is_told: bool,
        is_tree: bool,
        changes: &mut Vec<Change>,
    ) -> Result<(), FileError> {
        // Whatever had this name before was moved out of sight, or the kernel would have told where to.
        self.forget_where(|leaving| *leaving == path);
        if !is_told {
            changes.push((path.clone(), EventType::EVENT_TYPE_CREATE));
        }
        if is_tree { self.enter(&path, Some(changes)) } else { Ok(()) }
    }

    fn arrive(
        &mut self,
        path: PathBuf,
        cookie: u32,
        is_told: bool,
        is_tree: bool,
        changes: &mut Vec<Change>,
    ) -> Result<(), FileError> {
        if let Some(upload) = self.uploads.remove(&cookie) {
            // As E2B's agent writes a file, and its clients count what they hear of it.
            if upload == Upload::New && !is_told {
                changes.push((path.clone(), EventType::EVENT_TYPE_CREATE));
                changes.push((path.clone(), EventType::EVENT_TYPE_CHMOD));
            }
            changes.push((path, EventType::EVENT_TYPE_WRITE));
            return Ok(());
        }
        let Some(former) = self.leaving.remove(&cookie) else { return self.appear(path, is_told, is_tree, changes) };
        for directory in self.directories.values_mut() {
            if let Ok(below) = directory.strip_prefix(&former) {
                *directory = if below.as_os_str().is_empty() { path.clone() } else { path.join(below) };
            }
        }
        changes.push((path, EventType::EVENT_TYPE_CREATE));
        self.release(changes)
    }

    /// Watches what is new below `top`, which is watched itself from here on, and tells of what it finds where that is wanted.
    fn enter(&mut self, top: &Path, mut changes: Option<&mut Vec<Change>>) -> Result<(), FileError> {
        if !self.options.recursive {
            return Ok(());
        }
        let mut left = vec![top.to_owned()];
        while let Some(directory) = left.pop() {
            let Some(opened) = self.watch(&directory)? else { continue };
            let files = opened.try_clone().map_err(FileError::at(&directory))?;
            let read = Descent::begin(opened).entries(|name, file_type| {
                let path = directory.join(name);
                let found = match file_type {
                    FileType::Directory => None,
                    _ => statat(&files, name, AtFlags::SYMLINK_NOFOLLOW).ok(),
                };
                let file_type = found.as_ref().map_or(file_type, |found| FileType::from_raw_mode(found.st_mode));
                let is_directory = file_type == FileType::Directory;
                if is_directory && self.directories.len() + left.len() >= DIRECTORIES_MAX {
                    return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
                }
                let is_new = match changes.as_deref_mut() {
                    Some(changes) if upload_of(name).is_none() => {
                        let has_contents = found.is_some_and(|found| found.st_size > 0);
                        self.announce(&path, file_type == FileType::RegularFile && has_contents, changes)
                    }
                    Some(_) => false,
                    None => true,
                };
                if is_directory && is_new {
                    left.push(path);
                }
                Ok(())
            });
            match read {
                Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
                    return Err(too_many(&self.options.path)(Errno::ENOSPC));
                }
                // It is gone again, and what was in it.
                _ => {}
            }
        }
        Ok(())
    }

    /// Watches one directory, and opens it; `None` when it is gone again, or closed to the user: then it has nothing to tell.
    fn watch(&mut self, directory: &Path) -> Result<Option<OwnedFd>, FileError> {
        let opened = match directory::open(&self.options.path, directory) {
            Ok(opened) => opened,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                return Ok(None);
            }
            // A link, a file, or too deep for a path: what cannot be watched is said.
            Err(error) => {
                self.is_lossy |= error.kind() == io::ErrorKind::InvalidFilename;
                return Ok(None);
            }
        };
        let Some(wd) = add(&self.membership, &opened).map_err(too_many(&self.options.path))? else { return Ok(None) };
        self.directories.insert(wd, directory.to_owned());
        Ok(Some(opened))
    }

    /// Tells of what was found; whether nobody had told of it.
    fn announce(&mut self, path: &Path, has_contents: bool, changes: &mut Vec<Change>) -> bool {
        if changes.len() >= CHANGES_MAX || self.announced.len() >= ANNOUNCED_MAX {
            // Directories are watched all the same.
            self.is_lossy = true;
            return true;
        }
        if self.announced.is_empty() {
            self.taken = 0;
        }
        if !self.announced.insert(path.to_owned()) {
            return false;
        }
        changes.push((path.to_owned(), EventType::EVENT_TYPE_CREATE));
        if has_contents {
            changes.push((path.to_owned(), EventType::EVENT_TYPE_WRITE));
        }
        true
    }

    /// The kernel has told all: what it could have told twice it has told, and who has not arrived is out of sight.
    fn settle(&mut self) {
        self.announced.clear();
        self.taken = 0;
        self.uploads.clear();
        self.held.clear();
        self.forget_where(|_| true);
    }

    /// Stops watching the directories that left and match.
    fn forget_where(&mut self, matches: impl Fn(&PathBuf) -> bool) {
        let (gone, leaving) = mem::take(&mut self.leaving).into_iter().partition(|(_, path)| matches(path));
        self.leaving = leaving;
        let gone: HashMap<u32, PathBuf> = gone;
        for path in gone.values() {
            let below: Vec<_> = self.directories.extract_if(|_, directory| directory.starts_with(path)).collect();
            self.membership.remove(below.into_iter().map(|(wd, _)| wd));
        }
    }

    fn tell(&self, mut changes: Vec<Change>, events: &mut Vec<FilesystemEvent>) {
        // A file that is written to in many pieces has one thing to tell.
        changes.dedup_by(|next, former| next.1 == EventType::EVENT_TYPE_WRITE && next == former);
        let names = if self.options.include_entry { Names::read() } else { Names::default() };
        events.extend(changes.into_iter().map(|(path, kind)| {
            let gone = matches!(kind, EventType::EVENT_TYPE_REMOVE | EventType::EVENT_TYPE_RENAME);
            let is_wanted = self.options.include_entry && !gone;
            let entry = if is_wanted { describe(&self.options.path.join(&path), &names).ok() } else { None };
            let name = if path.as_os_str().is_empty() { ".".into() } else { told(path) };
            FilesystemEvent { name, r#type: kind.into(), entry: entry.into(), ..Default::default() }
        }));
    }
}

/// What happened to a path below the root.
type Change = (PathBuf, EventType);

/// Watches an open directory; `None` when it is gone, or the user may not read it.
fn add(membership: &Membership, directory: &OwnedFd) -> nix::Result<Option<WatchDescriptor>> {
    match membership.add(&path_of(directory), watched()) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(None),
        added => added.map(Some),
    }
}

fn too_many(path: &Path) -> impl Fn(Errno) -> FileError + '_ {
    |errno| match errno {
        Errno::ENOSPC => FileError::TooMany(
            "there are too many directories to watch: watch fewer, or raise fs.inotify.max_user_watches".to_owned(),
        ),
        errno => FileError::at(path)(errno.into()),
    }
}

fn watched() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR
}

/// As many events as the kernel keeps, and as an inbox does: what had happened when a directory was read is among them.
const QUEUED_MAX: usize = 2 * 16_384;

/// What one look at new directories tells at most.
const CHANGES_MAX: usize = 16_384;

const ANNOUNCED_MAX: usize = 2 * CHANGES_MAX;

/// Each takes a watch of the kernel's, and its path's length in memory.
const DIRECTORIES_MAX: usize = 100_000;

/// A rename is told at once: little can happen meanwhile.
const HELD_MAX: usize = 4096;

const UPLOADS_MAX: usize = 64;
