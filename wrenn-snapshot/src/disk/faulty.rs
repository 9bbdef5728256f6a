//! A disk for tests: it fails, or loses power, at a change of the test's choosing.
//!
//! It is a directory, and beside it the memory of what is durable: bytes since their file was synced, names since
//! their directory was. [`FaultyDisk::remains`] makes the directory that a machine finds when it comes up again.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, IoSlice},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::{Mutex, MutexGuard},
};

use nix::errno::Errno;

use crate::disk::{Disk, local::LocalDisk};

/// What happens at the chosen change.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It fails, and those after it do not.
    Error(Errno),
    /// It fails, and so does everything after it: nobody is there to clean up.
    PowerLoss,
    /// If it is a write, it writes half of what it could.
    ShortWrite,
    /// If it is the syncing of a file, it fails, and what was written so far is never going to be durable, although later
    /// syncs of the file succeed.
    LostSync(Errno),
}

/// What became of names that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    Lost,
    Kept,
    /// Those of the root are lost, and those of the directories in it are kept.
    LostAtRoot,
    /// Of the changes to each directory some are lost and some are kept, by this seed.
    Some(u64),
}

/// What became of bytes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    Lost,
    Torn,
    Zeroed,
    Kept,
    /// Another of these for each file, by this seed.
    Mixed(u64),
}

#[derive(Debug)]
pub(crate) struct FaultyDisk(Mutex<State>);

#[derive(Debug)]
struct State {
    root: u64,
    /// By inode. Each holds its file open, so that no number is given out twice.
    nodes: HashMap<u64, Node>,
    changes: usize,
    fault: Option<(usize, Fault)>,
    /// How many times a file or a directory was opened or listed, and which of them fails.
    reads: usize,
    failing_read: Option<usize>,
    struck: bool,
    dead: bool,
}

#[derive(Debug)]
struct Node {
    file: File,
    durable_bytes: Option<Vec<u8>>,
    names: Entries,
    durable_names: Entries,
    /// The changes from the durable names to the names.
    unsynced: Vec<NameChange>,
    /// A sync has failed.
    is_lost: bool,
}

#[derive(Debug)]
enum NameChange {
    Link(String, u64),
    Unlink(String),
    /// It carries the file or directory along, whatever became of how that got its first name.
    Rename(String, String, u64),
}

type Entries = BTreeMap<String, u64>;

impl FaultyDisk {
    /// Over the empty directory `root`, which is durable.
    pub(crate) fn new(root: &Path) -> Self {
        let mut nodes = HashMap::new();
        let root = add_node(&mut nodes, File::open(root).expect("the root is there"));
        let (changes, fault, reads, failing_read) = (0, None, 0, None);
        Self(Mutex::new(State { root, nodes, changes, fault, reads, failing_read, struck: false, dead: false }))
    }

    /// Chooses the change, counted from now on, and what happens then.
    pub(crate) fn arm(&self, at: usize, fault: Fault) {
        let mut state = self.state();
        state.fault = Some((at, fault));
        (state.changes, state.struck) = (0, false);
    }

    /// Chooses the opening or listing that fails with `EIO`, counted from now on.
    pub(crate) fn arm_read(&self, at: usize) {
        let mut state = self.state();
        (state.failing_read, state.reads, state.struck) = (Some(at), 0, false);
    }

    /// Whether the chosen change or reading has come.
    pub(crate) fn has_struck(&self) -> bool {
        self.state().struck
    }

    /// Makes what is left in the empty directory `into`.
    pub(crate) fn remains(&self, into: &Path, names: Names, bytes: Bytes) {
        let state = self.state();
        state.revive(state.root, into, names, bytes);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with the lock")
    }

    fn change(&self) -> io::Result<(MutexGuard<'_, State>, Option<Fault>)> {
        let mut state = self.state();
        if state.dead {
            return Err(Errno::EIO.into());
        }
        state.changes += 1;
        let Some((_, fault)) = state.fault.filter(|(at, _)| at + 1 == state.changes) else { return Ok((state, None)) };
        state.struck = true;
        match fault {
            Fault::Error(errno) => Err(errno.into()),
            Fault::PowerLoss => {
                state.dead = true;
                Err(Errno::EIO.into())
            }
            Fault::ShortWrite | Fault::LostSync(_) => Ok((state, Some(fault))),
        }
    }

    fn read(&self) -> io::Result<()> {
        let mut state = self.state();
        state.reads += 1;
        if state.failing_read.is_some_and(|at| at + 1 == state.reads) {
            state.struck = true;
            return Err(Errno::EIO.into());
        }
        Ok(())
    }
}

impl State {
    fn revive(&self, dir: u64, into: &Path, names: Names, bytes: Bytes) {
        let entries = self.nodes[&dir].entries(names, dir);
        let inside = if names == Names::LostAtRoot { Names::Kept } else { names };
        for (name, inode) in &entries {
            let (path, node) = (into.join(name), &self.nodes[inode]);
            if node.is_dir() {
                fs::create_dir(&path).expect("made");
                self.revive(*inode, &path, inside, bytes);
            } else {
                fs::write(&path, node.survivors(bytes, *inode)).expect("written");
            }
        }
    }

    fn directory(&mut self, path: &Path) -> &mut Node {
        let inode = fs::metadata(path).expect("it is there").ino();
        self.nodes.get_mut(&inode).expect("it was made here")
    }

    fn link(&mut self, path: &Path, inode: u64) {
        self.directory(path.parent().expect("inside")).apply(NameChange::Link(name_of(path), inode));
    }

    fn unlink(&mut self, path: &Path) {
        self.directory(path.parent().expect("inside")).apply(NameChange::Unlink(name_of(path)));
    }
}

impl NameChange {
    /// Makes the change, if it can be made.
    fn apply(&self, entries: &mut Entries) {
        match self {
            Self::Link(name, inode) => _ = entries.insert(name.clone(), *inode),
            Self::Unlink(name) => _ = entries.remove(name),
            Self::Rename(from, to, inode) => {
                if entries.get(from) == Some(inode) {
                    entries.remove(from);
                }
                entries.insert(to.clone(), *inode);
            }
        }
    }
}

impl Node {
    fn apply(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        if self.is_dir() {
            self.durable_names = self.names.clone();
            self.unsynced.clear();
        } else if !self.is_lost {
            self.durable_bytes = Some(self.bytes());
        }
    }

    /// The names in a directory after power was lost.
    fn entries(&self, names: Names, inode: u64) -> Entries {
        match names {
            Names::Kept => self.names.clone(),
            Names::Lost | Names::LostAtRoot => self.durable_names.clone(),
            Names::Some(seed) => {
                let mut entries = self.durable_names.clone();
                let kept = (0..).zip(&self.unsynced).filter(|(number, _)| coin(seed ^ inode, *number) < 128);
                kept.for_each(|(_, change)| change.apply(&mut entries));
                entries
            }
        }
    }

    fn is_dir(&self) -> bool {
        self.file.metadata().expect("open").is_dir()
    }

    fn bytes(&self) -> Vec<u8> {
        let len = self.file.metadata().expect("open").len();
        let mut bytes = vec![0; usize::try_from(len).expect("small")];
        self.file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    fn survivors(&self, bytes: Bytes, inode: u64) -> Vec<u8> {
        if let Some(durable) = &self.durable_bytes {
            return durable.clone();
        }
        let written = self.bytes();
        match bytes {
            Bytes::Lost => Vec::new(),
            Bytes::Torn => written[..written.len() / 2].to_vec(),
            Bytes::Zeroed => vec![0; written.len()],
            Bytes::Kept => written,
            Bytes::Mixed(seed) => {
                let one = [Bytes::Lost, Bytes::Torn, Bytes::Zeroed, Bytes::Kept][usize::from(coin(seed, inode) % 4)];
                self.survivors(one, inode)
            }
        }
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<File> {
        self.read()?;
        LocalDisk.open(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.read()?;
        LocalDisk.list(dir)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let (mut state, _) = self.change()?;
        LocalDisk.create_dir(path)?;
        let inode = add_node(&mut state.nodes, File::open(path)?);
        state.link(path, inode);
        Ok(())
    }

    fn create_file(&self, path: &Path) -> io::Result<File> {
        let (mut state, _) = self.change()?;
        let file = LocalDisk.create_file(path)?;
        let inode = add_node(&mut state.nodes, file.try_clone()?);
        state.link(path, inode);
        Ok(file)
    }

    fn open_to_write(&self, path: &Path) -> io::Result<File> {
        let (mut state, _) = self.change()?;
        let is_there = path.exists();
        let file = LocalDisk.open_to_write(path)?;
        if !is_there {
            // Opened anew, since a copy would share the lock.
            let inode = add_node(&mut state.nodes, File::open(path)?);
            state.link(path, inode);
        }
        Ok(file)
    }

    fn write(&self, file: &File, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let (_state, fault) = self.change()?;
        match (fault, pieces.first()) {
            (Some(Fault::ShortWrite), Some(first)) => {
                LocalDisk.write(file, &[IoSlice::new(&first[..first.len().div_ceil(2)])])
            }
            _ => LocalDisk.write(file, pieces),
        }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let (mut state, fault) = self.change()?;
        let node = state.nodes.get_mut(&file.metadata()?.ino()).expect("it was made here");
        match fault {
            Some(Fault::LostSync(errno)) if !node.is_dir() => {
                node.is_lost = true;
                Err(errno.into())
            }
            _ => {
                node.sync();
                Ok(())
            }
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut state, _) = self.change()?;
        LocalDisk.rename(from, to)?;
        assert_eq!(from.parent(), to.parent(), "nothing is moved from one directory to another");
        let inode = fs::metadata(to)?.ino();
        let change = NameChange::Rename(name_of(from), name_of(to), inode);
        state.directory(to.parent().expect("inside")).apply(change);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (mut state, _) = self.change()?;
        LocalDisk.remove_file(path)?;
        state.unlink(path);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let (mut state, _) = self.change()?;
        LocalDisk.remove_dir(path)?;
        state.unlink(path);
        Ok(())
    }
}

fn add_node(nodes: &mut HashMap<u64, Node>, file: File) -> u64 {
    let inode = file.metadata().expect("open").ino();
    let (names, durable_names, unsynced) = (Entries::new(), Entries::new(), Vec::new());
    let node = Node { file, durable_bytes: None, names, durable_names, unsynced, is_lost: false };
    nodes.insert(inode, node);
    inode
}

fn name_of(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned()
}

/// A number without a pattern (splitmix64).
fn coin(seed: u64, number: u64) -> u8 {
    let mut mixed = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).to_le_bytes()[7]
}
