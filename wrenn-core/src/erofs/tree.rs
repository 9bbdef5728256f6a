//! A tree of files in memory. An inode may have several names.

use std::collections::BTreeMap;

/// A tree of inodes. `C` is where a file's content is.
#[derive(Debug, Clone)]
pub(crate) struct Tree<C> {
    inodes: Vec<Inode<C>>,
}

/// The place of an inode in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InodeId(u32);

/// A file of any kind.
#[derive(Debug, Clone)]
pub(crate) struct Inode<C> {
    pub(crate) meta: Meta,
    pub(crate) kind: Kind<C>,
}

/// What every kind of file has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The permissions, with set-user-id, set-group-id and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Extended attributes by their full name, `user.comment` for one.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A time since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// What a file is.
#[derive(Debug, Clone)]
pub(crate) enum Kind<C> {
    File { size: u64, content: C },
    Directory(BTreeMap<Vec<u8>, InodeId>),
    Symlink(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
    Socket,
}

/// The numbers of a device: 12 bits and 20 bits, as Linux has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl<C> Tree<C> {
    /// A tree of nothing but a root directory.
    pub(crate) fn new(root: Meta) -> Self {
        Self { inodes: vec![Inode { meta: root, kind: Kind::Directory(BTreeMap::new()) }] }
    }

    pub(crate) const ROOT: InodeId = InodeId(0);

    /// Adds an inode that has no name yet. `None` where the tree has as many as it can have.
    pub(crate) fn add(&mut self, inode: Inode<C>) -> Option<InodeId> {
        let id = u32::try_from(self.inodes.len()).ok().filter(|id| *id < u32::MAX)?;
        self.inodes.push(inode);
        Some(InodeId(id))
    }

    pub(crate) fn inode(&self, id: InodeId) -> &Inode<C> {
        &self.inodes[id.index()]
    }

    pub(crate) fn inode_mut(&mut self, id: InodeId) -> &mut Inode<C> {
        &mut self.inodes[id.index()]
    }

    /// The number of inodes, those without a name included.
    pub(crate) fn len(&self) -> usize {
        self.inodes.len()
    }

    /// The entries of a directory. Those of anything else are none.
    pub(crate) fn entries(&self, id: InodeId) -> impl Iterator<Item = (&[u8], InodeId)> {
        let entries = match &self.inode(id).kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        };
        entries.into_iter().flatten().map(|(name, id)| (name.as_slice(), *id))
    }

    /// The same tree with its files' content elsewhere.
    pub(crate) fn map<D>(self, mut place: impl FnMut(InodeId, u64, C) -> D) -> Tree<D> {
        let inodes = self.inodes.into_iter().enumerate().map(|(index, Inode { meta, kind })| {
            let kind = match kind {
                Kind::File { size, content } => {
                    // The index came from a vector that `add` keeps within 32 bits.
                    let id = InodeId(u32::try_from(index).unwrap_or(u32::MAX));
                    Kind::File { size, content: place(id, size, content) }
                }
                Kind::Directory(entries) => Kind::Directory(entries),
                Kind::Symlink(target) => Kind::Symlink(target),
                Kind::CharDevice(device) => Kind::CharDevice(device),
                Kind::BlockDevice(device) => Kind::BlockDevice(device),
                Kind::Fifo => Kind::Fifo,
                Kind::Socket => Kind::Socket,
            };
            Inode { meta, kind }
        });
        Tree { inodes: inodes.collect() }
    }
}

impl InodeId {
    pub(crate) fn index(self) -> usize {
        // 32 bits fit on every machine that runs guests.
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Of a name within a directory.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// Of a symbolic link's target: what Linux follows.
pub(crate) const SYMLINK_BYTES_MAX: usize = 4095;
