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

/// What happens at the chosen change, which itself does not.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It fails, and those after it do not.
    Error(Errno),
    /// It fails, and so does everything after it: nobody is there to clean up.
    PowerLoss,
}

/// What became of names that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    Lost,
    Kept,
    /// Those of the root are lost, and those of the directories in it are kept.
    LostAtRoot,
}

/// What became of bytes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    Lost,
    Torn,
    Zeroed,
    Kept,
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
    struck: bool,
    dead: bool,
}

#[derive(Debug)]
struct Node {
    file: File,
    durable_bytes: Option<Vec<u8>>,
    names: Entries,
    durable_names: Entries,
}

type Entries = BTreeMap<String, u64>;

impl FaultyDisk {
    /// Over the empty directory `root`, which is durable.
    pub(crate) fn new(root: &Path) -> Self {
        let mut nodes = HashMap::new();
        let root = add_node(&mut nodes, File::open(root).expect("the root is there"));
        let (changes, fault) = (0, None);
        Self(Mutex::new(State { root, nodes, changes, fault, struck: false, dead: false }))
    }

    /// Chooses the change, counted from now on, and what happens then.
    pub(crate) fn arm(&self, at: usize, fault: Fault) {
        let mut state = self.state();
        state.fault = Some((at, fault));
        (state.changes, state.struck) = (0, false);
    }

    /// Whether the chosen change has come.
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

    fn change(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.dead {
            return Err(Errno::EIO.into());
        }
        state.changes += 1;
        match state.fault {
            Some((at, fault)) if at + 1 == state.changes => {
                state.struck = true;
                match fault {
                    Fault::Error(errno) => Err(errno.into()),
                    Fault::PowerLoss => {
                        state.dead = true;
                        Err(Errno::EIO.into())
                    }
                }
            }
            _ => Ok(state),
        }
    }
}

impl State {
    fn revive(&self, dir: u64, into: &Path, names: Names, bytes: Bytes) {
        let dir = &self.nodes[&dir];
        let entries = if names == Names::Kept { &dir.names } else { &dir.durable_names };
        let inside = if names == Names::Lost { Names::Lost } else { Names::Kept };
        for (name, inode) in entries {
            let (path, node) = (into.join(name), &self.nodes[inode]);
            if node.is_dir() {
                fs::create_dir(&path).expect("made");
                self.revive(*inode, &path, inside, bytes);
            } else {
                fs::write(&path, node.survivors(bytes)).expect("written");
            }
        }
    }

    fn directory(&mut self, path: &Path) -> &mut Node {
        let inode = fs::metadata(path).expect("it is there").ino();
        self.nodes.get_mut(&inode).expect("it was made here")
    }

    fn link(&mut self, path: &Path, inode: u64) {
        self.directory(path.parent().expect("inside")).names.insert(name_of(path), inode);
    }

    fn unlink(&mut self, path: &Path) -> u64 {
        self.directory(path.parent().expect("inside")).names.remove(&name_of(path)).expect("it has the name")
    }
}

impl Node {
    fn is_dir(&self) -> bool {
        self.file.metadata().expect("open").is_dir()
    }

    fn bytes(&self) -> Vec<u8> {
        let len = self.file.metadata().expect("open").len();
        let mut bytes = vec![0; usize::try_from(len).expect("small")];
        self.file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    fn survivors(&self, bytes: Bytes) -> Vec<u8> {
        if let Some(durable) = &self.durable_bytes {
            return durable.clone();
        }
        let written = self.bytes();
        match bytes {
            Bytes::Lost => Vec::new(),
            Bytes::Torn => written[..written.len() / 2].to_vec(),
            Bytes::Zeroed => vec![0; written.len()],
            Bytes::Kept => written,
        }
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<File> {
        LocalDisk.open(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        LocalDisk.list(dir)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        LocalDisk.create_dir(path)?;
        let inode = add_node(&mut state.nodes, File::open(path)?);
        state.link(path, inode);
        Ok(())
    }

    fn create_file(&self, path: &Path) -> io::Result<File> {
        let mut state = self.change()?;
        let file = LocalDisk.create_file(path)?;
        let inode = add_node(&mut state.nodes, file.try_clone()?);
        state.link(path, inode);
        Ok(file)
    }

    fn open_to_write(&self, path: &Path) -> io::Result<File> {
        let mut state = self.change()?;
        let is_there = path.exists();
        let file = LocalDisk.open_to_write(path)?;
        if !is_there {
            let inode = add_node(&mut state.nodes, file.try_clone()?);
            state.link(path, inode);
        }
        Ok(file)
    }

    fn write(&self, file: &File, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let _state = self.change()?;
        LocalDisk.write(file, pieces)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let mut state = self.change()?;
        let node = state.nodes.get_mut(&file.metadata()?.ino()).expect("it was made here");
        if node.is_dir() {
            node.durable_names = node.names.clone();
        } else {
            node.durable_bytes = Some(node.bytes());
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        LocalDisk.rename(from, to)?;
        let inode = state.unlink(from);
        state.link(to, inode);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        LocalDisk.remove_file(path)?;
        state.unlink(path);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        LocalDisk.remove_dir(path)?;
        state.unlink(path);
        Ok(())
    }
}

fn add_node(nodes: &mut HashMap<u64, Node>, file: File) -> u64 {
    let inode = file.metadata().expect("open").ino();
    let node = Node { file, durable_bytes: None, names: Entries::new(), durable_names: Entries::new() };
    nodes.insert(inode, node);
    inode
}

fn name_of(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned()
}
