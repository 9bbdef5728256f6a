use std::{
    collections::{HashMap, HashSet},
    fs, io, mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InotifyEvent, WatchDescriptor},
};

use super::{options::WatchOptions, sys::Instance};
use crate::{
    agent::{
        disk::{
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
    inotify: Arc<Instance>,
    options: WatchOptions,
    root: WatchDescriptor,
    /// The watched directories, by their paths below the root.
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// What reading a new directory found; the kernel may tell of it once more.
    announced: HashSet<PathBuf>,
    /// Directories that have left their names, by the kernel's number for the rename.
    leaving: HashMap<u32, PathBuf>,
    /// The agent's own uploads that are about to get their names.
    uploads: HashMap<u32, Upload>,
}

impl Tracker {
    pub(super) fn open(inotify: Arc<Instance>, options: WatchOptions) -> Result<Self, FileError> {
        let root = add(&inotify, &options.path, AddWatchFlags::empty())?
            .ok_or_else(|| FileError::at(&options.path)(io::ErrorKind::NotFound.into()))?;
        let directories = HashMap::from([(root, PathBuf::new())]);
        let mut tracker = Self {
            inotify,
            options,
            root,
            directories,
            announced: HashSet::new(),
            leaving: HashMap::new(),
            uploads: HashMap::new(),
        };
        tracker.enter(Path::new(""), &mut Vec::new())?;
        tracker.announced.clear();
        Ok(tracker)
    }

    /// Whether it should hear of it when the kernel has nothing more to tell.
    pub(super) fn has_loose_ends(&self) -> bool {
        !(self.announced.is_empty() && self.leaving.is_empty() && self.uploads.is_empty())
    }

    /// Takes what the kernel told; nothing means that it had nothing more to tell.
    pub(super) fn take(
        &mut self,
        batch: Vec<InotifyEvent>,
        events: &mut Vec<FilesystemEvent>,
    ) -> Result<State, FileError> {
        if batch.is_empty() {
            self.settle();
            return Ok(State::Watching);
        }
        let (mut changes, mut state) = (Vec::new(), State::Watching);
        for event in batch {
            match self.take_one(event, &mut changes)? {
                State::Watching => {}
                State::Lost => state = State::Lost,
                State::Gone => {
                    state = State::Gone;
                    break;
                }
            }
        }
        if state == State::Lost {
            // Directories may have come that nobody told of.
            self.enter(Path::new(""), &mut Vec::new())?;
            self.announced.clear();
        }
        self.tell(changes, events);
        Ok(state)
    }

    fn take_one(&mut self, event: InotifyEvent, changes: &mut Vec<Change>) -> Result<State, FileError> {
        use AddWatchFlags as Mask;
        let mask = event.mask;
        if mask.contains(Mask::IN_Q_OVERFLOW) {
            return Ok(State::Lost);
        }
        let Some(directory) = self.directories.get(&event.wd) else { return Ok(State::Watching) };
        let Some(name) = event.name else { return Ok(self.take_own(event.wd, mask, changes)) };
        let path = directory.join(&name);
        if let Some(upload) = upload_of(&name) {
            if mask.contains(Mask::IN_MOVED_FROM) {
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
            if is_tree {
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
    fn take_own(&mut self, wd: WatchDescriptor, mask: AddWatchFlags, changes: &mut Vec<Change>) -> State {
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            self.directories.remove(&wd);
            return if wd == self.root { State::Gone } else { State::Watching };
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
        State::Watching
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
        if is_tree { self.enter(&path, changes) } else { Ok(()) }
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
            // As a client would see it that knew nothing of the agent's way to replace a file.
            if upload == Upload::New && !is_told {
                changes.push((path.clone(), EventType::EVENT_TYPE_CREATE));
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
        Ok(())
    }

    /// Watches what is new below `top`, which is watched itself from here on, and tells of what it finds.
    fn enter(&mut self, top: &Path, changes: &mut Vec<Change>) -> Result<(), FileError> {
        if !self.options.recursive {
            return Ok(());
        }
        let mut left = vec![top.to_owned()];
        while let Some(directory) = left.pop() {
            let place = self.options.path.join(&directory);
            // The root may be named by a link.
            let flags =
                if directory.as_os_str().is_empty() { AddWatchFlags::empty() } else { AddWatchFlags::IN_DONT_FOLLOW };
            // One that is gone again, or closed to the user, has nothing to tell.
            let Some(wd) = add(&self.inotify, &place, flags)? else { continue };
            self.directories.insert(wd, directory.clone());
            let Ok(entries) = fs::read_dir(&place) else { continue };
            for entry in entries.flatten() {
                let path = directory.join(entry.file_name());
                if upload_of(&entry.file_name()).is_some() || !self.announced.insert(path.clone()) {
                    continue;
                }
                changes.push((path.clone(), EventType::EVENT_TYPE_CREATE));
                match entry.metadata() {
                    Ok(found) if found.is_dir() => left.push(path),
                    Ok(found) if found.is_file() && found.len() > 0 => {
                        changes.push((path, EventType::EVENT_TYPE_WRITE));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The kernel has told all: what it could have told twice it has told, and who has not arrived is out of sight.
    fn settle(&mut self) {
        self.announced.clear();
        self.uploads.clear();
        self.forget_where(|_| true);
    }

    /// Stops watching the directories that left and match.
    fn forget_where(&mut self, matches: impl Fn(&PathBuf) -> bool) {
        let (gone, leaving) = mem::take(&mut self.leaving).into_iter().partition(|(_, path)| matches(path));
        self.leaving = leaving;
        let gone: HashMap<u32, PathBuf> = gone;
        for path in gone.values() {
            let below: Vec<_> = self.directories.extract_if(|_, directory| directory.starts_with(path)).collect();
            for (wd, _) in below {
                // It fails for one that was removed in the meantime, whose watch is gone already.
                let _ = self.inotify.inner().rm_watch(wd);
            }
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

/// Watches a directory; `None` when it is gone, or the user may not read it.
fn add(inotify: &Instance, path: &Path, flags: AddWatchFlags) -> Result<Option<WatchDescriptor>, FileError> {
    match inotify.inner().add_watch(path, watched() | flags) {
        Ok(wd) => Ok(Some(wd)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(None),
        Err(Errno::ENOSPC) => Err(FileError::TooMany(
            "there are too many directories to watch: watch fewer, or raise fs.inotify.max_user_watches".to_owned(),
        )),
        Err(errno) => Err(FileError::at(path)(errno.into())),
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
