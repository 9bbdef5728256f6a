//! Layers, one upon the other, into one tree: what `archive.Apply` of containerd makes of them in a directory.
//!
//! A white-out hides what lower layers have, wherever it stands in its layer. A name's directories that no layer has are
//! made. A symbolic link among them is followed, and never out of the root. A directory upon a directory keeps what is
//! in it; anything else replaces.

use std::collections::{BTreeMap, HashSet, VecDeque};

use crate::erofs::{Inode, InodeId, Kind, Meta, Tree};
use crate::oci::entry::{Entry, EntryKind, Stored};
use crate::oci::error::EntryFault;

/// Where a file's content is: the layer's place in the image, and the place in the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerContent {
    pub(super) layer: u32,
    pub(super) stored: Stored,
}

/// A tree that layers are put upon.
#[derive(Debug)]
pub(super) struct Merge {
    tree: Tree<LayerContent>,
    /// By [`InodeId::index`]: the layer that an inode comes from.
    origins: Vec<u32>,
    /// The names that this layer gives to inodes of lower ones.
    linked: HashSet<(InodeId, Vec<u8>)>,
    layer: u32,
}

impl Merge {
    pub(super) fn new() -> Self {
        Self { tree: Tree::new(implied()), origins: vec![0], linked: HashSet::new(), layer: 0 }
    }

    /// Puts the next layer on top.
    pub(super) fn apply(&mut self, entries: &[Entry]) -> Result<(), (Vec<u8>, EntryFault)> {
        self.layer += 1;
        self.linked.clear();
        entries.iter().try_for_each(|entry| self.entry(entry).map_err(|fault| (entry.path.clone(), fault)))
    }

    pub(super) fn tree(&self) -> &Tree<LayerContent> {
        &self.tree
    }

    /// What is at a path, where there is something. Symbolic links are followed within the root.
    pub(super) fn find(&self, path: &str) -> Option<InodeId> {
        match self.resolve(&split(path.as_bytes())) {
            Ok(Found::Inode(id)) => Some(id),
            Ok(Found::Missing { .. }) | Err(_) => None,
        }
    }

    pub(super) fn finish(self) -> Tree<LayerContent> {
        self.tree
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), EntryFault> {
        let names: Vec<&[u8]> = split(&entry.path);
        match entry.kind {
            EntryKind::Whiteout => {
                if let Some((last, above)) = names.split_last()
                    && let Some(directory) = self.hidden(above)?
                {
                    self.hide(directory, last);
                }
                return Ok(());
            }
            EntryKind::Opaque => {
                if let Some(directory) = self.hidden(&names)? {
                    self.clear(directory);
                }
                return Ok(());
            }
            _ => {}
        }
        let Some((last, above)) = names.split_last() else { return self.root(entry) };
        let directory = self.directory(above)?;
        let old = self.child(directory, last);
        if let (EntryKind::Directory, Some(old)) = (&entry.kind, old)
            && matches!(self.tree.inode(old).kind, Kind::Directory(_))
        {
            self.tree.inode_mut(old).meta = entry.meta.clone();
            self.origins[old.index()] = self.layer;
            return Ok(());
        }
        let id = match &entry.kind {
            EntryKind::Link(target) => {
                self.linked.insert((directory, last.to_vec()));
                self.target(target)?
            }
            kind => self.add(entry.meta.clone(), self.kind(kind))?,
        };
        self.name(directory, last, id)
    }

    fn root(&mut self, entry: &Entry) -> Result<(), EntryFault> {
        if entry.kind != EntryKind::Directory {
            return Err(EntryFault::Root);
        }
        let root = self.tree.inode_mut(Tree::<LayerContent>::ROOT);
        root.meta = entry.meta.clone();
        Ok(())
    }

    fn kind(&self, kind: &EntryKind) -> Kind<LayerContent> {
        match kind {
            EntryKind::File(stored) => {
                // Layers are numbered from 1 on here, and from 0 on by whoever reads them.
                let content = LayerContent { layer: self.layer - 1, stored: *stored };
                Kind::File { size: stored.size, content }
            }
            EntryKind::Symlink(target) => Kind::Symlink(target.clone()),
            EntryKind::CharDevice(device) => Kind::CharDevice(*device),
            EntryKind::BlockDevice(device) => Kind::BlockDevice(*device),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Socket => Kind::Socket,
            // Those without an inode of their own do not come here.
            EntryKind::Directory | EntryKind::Link(_) | EntryKind::Whiteout | EntryKind::Opaque => {
                Kind::Directory(BTreeMap::new())
            }
        }
    }

    fn add(&mut self, meta: Meta, kind: Kind<LayerContent>) -> Result<InodeId, EntryFault> {
        self.origins.push(self.layer);
        self.tree.add(Inode { meta, kind }).ok_or(EntryFault::Count)
    }

    fn child(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        match &self.tree.inode(directory).kind {
            Kind::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn name(&mut self, directory: InodeId, name: &[u8], id: InodeId) -> Result<(), EntryFault> {
        let Kind::Directory(entries) = &mut self.tree.inode_mut(directory).kind else {
            return Err(EntryFault::NotADirectory);
        };
        entries.insert(name.to_vec(), id);
        Ok(())
    }

    /// The directory of these names. Those that are missing are made.
    fn directory(&mut self, names: &[&[u8]]) -> Result<InodeId, EntryFault> {
        match self.resolve(names)? {
            Found::Inode(id) => match self.tree.inode(id).kind {
                Kind::Directory(_) => Ok(id),
                _ => Err(EntryFault::NotADirectory),
            },
            Found::Missing { mut directory, names } => {
                for name in names {
                    let made = self.add(implied(), Kind::Directory(BTreeMap::new()))?;
                    self.name(directory, &name, made)?;
                    directory = made;
                }
                Ok(directory)
            }
        }
    }

    /// The directory that something is hidden in, where there is one.
    fn hidden(&self, names: &[&[u8]]) -> Result<Option<InodeId>, EntryFault> {
        match self.resolve(names) {
            Ok(Found::Inode(directory)) => Ok(Some(directory)),
            Ok(Found::Missing { .. }) | Err(EntryFault::NotADirectory) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Follows symbolic links, the last one too.
    fn resolve(&self, names: &[&[u8]]) -> Result<Found, EntryFault> {
        let root = Tree::<LayerContent>::ROOT;
        let mut rest: VecDeque<Vec<u8>> = names.iter().map(|name| name.to_vec()).collect();
        let (mut way, mut links) = (vec![root], 0);
        while let Some(name) = rest.pop_front() {
            let here = way.last().copied().unwrap_or(root);
            if !matches!(self.tree.inode(here).kind, Kind::Directory(_)) {
                return Err(EntryFault::NotADirectory);
            }
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    way.truncate(way.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let Some(child) = self.child(here, &name) else {
                return Found::missing(here, way.len(), name, rest);
            };
            if let Kind::Symlink(target) = &self.tree.inode(child).kind {
                links += 1;
                if links > LINKS_MAX {
                    return Err(EntryFault::Loop);
                }
                if target.starts_with(b"/") {
                    way.truncate(1);
                }
                for name in target.split(|byte| *byte == b'/').rev() {
                    rest.push_front(name.to_vec());
                }
            } else {
                way.push(child);
                if way.len() > DEPTH_MAX {
                    return Err(EntryFault::Depth);
                }
            }
        }
        Ok(Found::Inode(way.last().copied().unwrap_or(root)))
    }

    /// What a hard link means. A symbolic link at the end of its name is meant itself.
    fn target(&self, path: &[u8]) -> Result<InodeId, EntryFault> {
        let names = split(path);
        let (last, above) = names.split_last().ok_or(EntryFault::DirectoryTarget)?;
        let Found::Inode(directory) = self.resolve(above)? else { return Err(EntryFault::MissingTarget) };
        let id = self.child(directory, last).ok_or(EntryFault::MissingTarget)?;
        match self.tree.inode(id).kind {
            Kind::Directory(_) => Err(EntryFault::DirectoryTarget),
            _ => Ok(id),
        }
    }

    /// Removes what lower layers have under a name. What this layer has stays.
    fn hide(&mut self, directory: InodeId, name: &[u8]) {
        let Some(id) = self.child(directory, name) else { return };
        self.clear(id);
        let linked = self.linked.contains(&(directory, name.to_vec()));
        let own = self.origins[id.index()] == self.layer || linked || self.tree.entries(id).next().is_some();
        if !own {
            if let Kind::Directory(entries) = &mut self.tree.inode_mut(directory).kind {
                entries.remove(name);
            }
        } else if self.origins[id.index()] != self.layer && !linked {
            // A lower layer's directory that goes, and that this layer has something in.
            self.tree.inode_mut(id).meta = implied();
            self.origins[id.index()] = self.layer;
        }
    }

    /// Removes what lower layers have in a directory.
    fn clear(&mut self, directory: InodeId) {
        let children: Vec<Vec<u8>> = self.tree.entries(directory).map(|(name, _)| name.to_vec()).collect();
        for name in children {
            self.hide(directory, &name);
        }
    }
}

/// What is at a path.
enum Found {
    Inode(InodeId),
    /// Nothing, from the first of these names on.
    Missing {
        directory: InodeId,
        names: Vec<Vec<u8>>,
    },
}

impl Found {
    fn missing(directory: InodeId, depth: usize, name: Vec<u8>, rest: VecDeque<Vec<u8>>) -> Result<Self, EntryFault> {
        let mut names: Vec<Vec<u8>> = vec![name];
        for name in rest {
            match name.as_slice() {
                b"" | b"." => {}
                // What is not there yet can be left again, but for what was there before.
                b".." => drop(names.pop()),
                _ => names.push(name),
            }
        }
        if depth + names.len() > DEPTH_MAX {
            return Err(EntryFault::Depth);
        }
        Ok(Self::Missing { directory, names })
    }
}

fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect()
}

/// A directory that only the names below it tell of.
fn implied() -> Meta {
    Meta { mode: 0o755, ..Meta::default() }
}

/// As Linux follows at most.
const LINKS_MAX: u32 = 40;
/// Of directories in each other, for what walks through the tree.
const DEPTH_MAX: usize = 1024;
