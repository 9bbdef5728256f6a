use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use crate::erofs::{InodeId, Kind, Meta, Tree};
use crate::oci::entry::{Entry, EntryKind, Place, Stored};
use crate::oci::error::EntryFault;
use crate::oci::merge::{LayerContent, Merge};

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry { path: path.as_bytes().to_vec(), meta: Meta { mode: 0o700, ..Meta::default() }, kind }
}

fn file(path: &str, number: u64) -> Entry {
    entry(path, EntryKind::File(Stored { size: number, place: Place::Small(0) }))
}

fn directory(path: &str) -> Entry {
    entry(path, EntryKind::Directory)
}

fn link(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Link(target.as_bytes().to_vec()))
}

fn sym(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Symlink(target.as_bytes().to_vec()))
}

fn gone(path: &str) -> Entry {
    entry(path, EntryKind::Whiteout)
}

fn opaque(path: &str) -> Entry {
    entry(path, EntryKind::Opaque)
}

fn merged(layers: &[Vec<Entry>]) -> Result<BTreeMap<String, String>, EntryFault> {
    let mut merge = Merge::new();
    for layer in layers {
        merge.apply(layer).map_err(|(_, fault)| fault)?;
    }
    let tree = merge.finish();
    let mut all = BTreeMap::new();
    list(&tree, Tree::<LayerContent>::ROOT, "", &mut all);
    Ok(all)
}

fn list(tree: &Tree<LayerContent>, id: InodeId, path: &str, all: &mut BTreeMap<String, String>) {
    for (name, child) in tree.entries(id) {
        let path = format!("{path}/{}", String::from_utf8_lossy(name));
        let what = match &tree.inode(child).kind {
            Kind::File { size, .. } => size.to_string(),
            Kind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
            _ => format!("{:o}", tree.inode(child).meta.mode),
        };
        all.insert(path.clone(), what);
        list(tree, child, &path, all);
    }
}

/// What it shows, the layers, and each path of the tree with what is there.
type Case = (&'static str, Vec<Vec<Entry>>, &'static [(&'static str, &'static str)]);

#[test]
fn the_odd_cases_are_as_a_container_runtime_has_them() {
    let cases: Vec<Case> = vec![
        ("a white-out hides a file", vec![vec![file("a", 1), file("b", 2)], vec![gone("a")]], &[("/b", "2")]),
        ("and a whole directory", vec![vec![file("d/a", 1)], vec![gone("d")]], &[]),
        ("and nothing is no error", vec![vec![gone("x/y/z")]], &[]),
        (
            "not what is in its layer, before it",
            vec![vec![file("a", 1)], vec![file("a", 2), gone("a")]],
            &[("/a", "2")],
        ),
        ("or after it", vec![vec![file("a", 1)], vec![gone("a"), file("a", 2)]], &[("/a", "2")]),
        (
            "a directory that is hidden and filled has nothing of before",
            vec![vec![directory("d"), file("d/a", 1)], vec![file("d/b", 2), gone("d")]],
            &[("/d", "755"), ("/d/b", "2")],
        ),
        (
            "an opaque directory keeps what is in its layer",
            vec![vec![file("d/a", 1), file("d/e/f", 1)], vec![file("d/b", 2), opaque("d"), file("d/c", 3)]],
            &[("/d", "755"), ("/d/b", "2"), ("/d/c", "3")],
        ),
        (
            "a new name of an old file is of its layer",
            vec![vec![file("a", 1), file("d/x", 1)], vec![link("d/y", "a"), opaque("d")]],
            &[("/a", "1"), ("/d", "755"), ("/d/y", "1")],
        ),
        ("parents are implied", vec![vec![file("a/b/c", 1)]], &[("/a", "755"), ("/a/b", "755"), ("/a/b/c", "1")]),
        (
            "a directory upon a directory keeps its children",
            vec![vec![file("d/a", 1)], vec![directory("d")]],
            &[("/d", "700"), ("/d/a", "1")],
        ),
        ("a file upon a directory replaces all of it", vec![vec![file("d/a", 1)], vec![file("d", 2)]], &[("/d", "2")]),
        (
            "a directory upon a link replaces it",
            vec![vec![directory("t"), sym("d", "t")], vec![directory("d"), file("d/a", 1)]],
            &[("/d", "700"), ("/d/a", "1"), ("/t", "700")],
        ),
        (
            "a link above is followed",
            vec![vec![directory("t"), sym("d", "/t")], vec![file("d/a", 1)]],
            &[("/d", "-> /t"), ("/t", "700"), ("/t/a", "1")],
        ),
        (
            "and never out of the root",
            vec![vec![sym("d", "../../../t")], vec![file("d/a", 1)]],
            &[("/d", "-> ../../../t"), ("/t", "755"), ("/t/a", "1")],
        ),
        ("the last of one name counts", vec![vec![file("a", 1), directory("a"), file("a", 3)]], &[("/a", "3")]),
        (
            "a hard link is to the file as it was",
            vec![vec![file("a", 1)], vec![link("b", "a"), file("a", 2)]],
            &[("/a", "2"), ("/b", "1")],
        ),
        ("a hard link may be to a link", vec![vec![sym("a", "x"), link("b", "a")]], &[("/a", "-> x"), ("/b", "-> x")]),
    ];
    for (what, layers, expected) in cases {
        let expected = expected.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect();
        assert_eq!(merged(&layers).unwrap(), expected, "{what}");
    }
}

#[test]
fn what_no_tree_can_have_is_refused() {
    for (layers, expected) in [
        (vec![link("a", "missing")], EntryFault::MissingTarget),
        (vec![directory("d"), link("a", "d")], EntryFault::DirectoryTarget),
        (vec![file("a", 1), file("a/b", 1)], EntryFault::NotADirectory),
        (vec![sym("a", "b"), sym("b", "a"), file("a/c", 1)], EntryFault::Loop),
        (vec![file("", 1)], EntryFault::Root),
    ] {
        assert_eq!(merged(&[layers]).unwrap_err(), expected);
    }
    let deep = vec![sym("s", &"d/".repeat(1000)), directory(&format!("s/{}", "e/".repeat(1000)))];
    assert_eq!(merged(&[deep]).unwrap_err(), EntryFault::Depth);
}

/// The same in a directory, with the kernel's own walk within a root.
struct Oracle(tempfile::TempDir);

impl Oracle {
    fn parent(&self, path: &Path) -> io::Result<OwnedFd> {
        let root = rustix::fs::open(self.0.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
        };
        let mut here = PathBuf::from(".");
        for name in path.parent().unwrap().components() {
            here.push(name);
            if let Err(rustix::io::Errno::NOENT) = open(&here) {
                // A link that leads nowhere is not followed to what would be made: such cases are left out.
                let above = open(here.parent().unwrap())?;
                rustix::fs::mkdirat(&above, here.file_name().unwrap(), Mode::from(0o755))?;
            }
        }
        Ok(open(path.parent().filter(|parent| *parent != Path::new("")).unwrap_or_else(|| Path::new(".")))?)
    }

    fn apply(&self, entry: &Entry) -> io::Result<()> {
        let text = String::from_utf8(entry.path.clone()).unwrap();
        let path = Path::new(&text);
        let name = path.file_name().unwrap();
        let parent = self.parent(path)?;
        let place = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&parent))).join(name);
        let old = fs::symlink_metadata(&place).ok();
        let is_directory = old.as_ref().is_some_and(fs::Metadata::is_dir);
        if entry.kind == EntryKind::Directory && is_directory {
            return Ok(());
        }
        let linked = match &entry.kind {
            EntryKind::Link(target) => {
                let target = String::from_utf8(target.clone()).unwrap();
                let above = self.parent(Path::new(&target))?;
                let spare = self.0.path().join(".spare");
                rustix::fs::linkat(
                    &above,
                    Path::new(&target).file_name().unwrap(),
                    rustix::fs::CWD,
                    &spare,
                    AtFlags::empty(),
                )?;
                Some(spare)
            }
            _ => None,
        };
        match old {
            Some(_) if is_directory => fs::remove_dir_all(&place)?,
            Some(_) => fs::remove_file(&place)?,
            None => {}
        }
        match &entry.kind {
            EntryKind::File(stored) => fs::write(&place, vec![0; usize::try_from(stored.size).unwrap()]),
            EntryKind::Directory => fs::create_dir(&place),
            EntryKind::Symlink(target) => symlink(String::from_utf8(target.clone()).unwrap(), &place),
            EntryKind::Link(_) => fs::rename(linked.unwrap(), &place),
            _ => Ok(()),
        }
    }

    fn list(&self) -> BTreeMap<String, String> {
        let (mut all, mut pending) = (BTreeMap::new(), vec![self.0.path().to_owned()]);
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
                let (path, meta) = (entry.path(), entry.metadata().unwrap());
                let what = if meta.is_dir() {
                    pending.push(path.clone());
                    String::new()
                } else if meta.is_symlink() {
                    format!("-> {}", fs::read_link(&path).unwrap().display())
                } else {
                    meta.len().to_string()
                };
                all.insert(format!("/{}", path.strip_prefix(self.0.path()).unwrap().display()), what);
            }
        }
        all
    }
}

#[test]
fn it_is_as_if_unpacked_to_a_directory() {
    for seed in 0..150 {
        let mut random = StdRng::seed_from_u64(seed);
        let oracle = Oracle(tempfile::tempdir().unwrap());
        let mut layers: Vec<Vec<Entry>> = Vec::new();
        for number in 0..40 {
            let path = path(&mut random);
            let next = match random.random_range(0..12) {
                0 | 1 => directory(&path),
                2 => gone(&path),
                3 => link(&path, &self::path(&mut random)),
                // To what is there, so that the oracle need not make it.
                4 => sym(&path, ["/", "..", "../..", "."][random.random_range(0..4)]),
                _ => file(&path, number),
            };
            // A white-out makes no directory for itself.
            let before = merged(&layers).unwrap();
            if next.kind == EntryKind::Whiteout && !before.contains_key(&format!("/{path}")) {
                continue;
            }
            layers.push(vec![next.clone()]);
            let ours = merged(&layers);
            let theirs = oracle.apply(&next);
            let Ok(mut ours) = ours else {
                assert!(theirs.is_err(), "{seed} {next:?}");
                break;
            };
            theirs.unwrap_or_else(|error| panic!("{seed} {next:?}: {error}"));
            ours.values_mut().filter(|what| ["755", "700"].contains(&what.as_str())).for_each(String::clear);
            assert_eq!(ours, oracle.list(), "{seed} {next:?}");
        }
    }
}

fn path(random: &mut StdRng) -> String {
    let names: Vec<&str> = (0..random.random_range(1..4)).map(|_| ["a", "b", "c"][random.random_range(0..3)]).collect();
    names.join("/")
}
