use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::erofs::xattr::AttributeError;

/// A mounted image, for as long as it lives.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None` where this machine cannot mount one, which is printed.
    fn new(image: &Path, test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: {test}: a mount needs root");
            return None;
        }
        if !fs::read_to_string("/proc/filesystems").unwrap().contains("erofs") {
            println!("skipped: {test}: this kernel has no EROFS");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(directory.path()).output();
        let mounted = mounted.unwrap();
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        Some(Self(directory))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().ok();
    }
}

/// An image in the making.
struct Builder {
    tree: Tree<Content>,
    file: tempfile::NamedTempFile,
    next_block: u32,
    short: Vec<u8>,
    contents: BTreeMap<InodeId, Vec<u8>>,
}

impl Builder {
    fn new() -> Self {
        let root = Meta { mode: 0o755, ..Meta::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        Self { tree: Tree::new(root), file, next_block: 1, short: Vec::new(), contents: BTreeMap::new() }
    }

    fn add(&mut self, directory: InodeId, name: &[u8], meta: Meta, kind: Kind<Content>) -> InodeId {
        let id = self.tree.add(Inode { meta, kind }).unwrap();
        self.link(directory, name, id);
        id
    }

    fn link(&mut self, directory: InodeId, name: &[u8], id: InodeId) {
        let Kind::Directory(entries) = &mut self.tree.inode_mut(directory).kind else { panic!("no directory") };
        entries.insert(name.to_vec(), id);
    }

    fn file(&mut self, directory: InodeId, name: &[u8], meta: Meta, bytes: &[u8], short: bool) -> InodeId {
        let content = if short {
            let offset = self.short.len() as u64;
            self.short.extend(bytes);
            Content::Elsewhere { source: 7, offset }
        } else {
            let block = self.next_block;
            self.file.as_file().write_all_at(bytes, u64::from(block) * BLOCK).unwrap();
            self.next_block += u32::try_from((bytes.len() as u64).div_ceil(BLOCK)).unwrap();
            Content::Blocks(block)
        };
        let id = self.add(directory, name, meta, Kind::File { size: bytes.len() as u64, content });
        self.contents.insert(id, bytes.to_vec());
        id
    }

    fn write(&self) -> io::Result<u64> {
        write(&self.tree, self.file.as_file(), self.next_block, &mut |source, offset, bytes| {
            assert_eq!(source, 7);
            let start = usize::try_from(offset).unwrap();
            bytes.copy_from_slice(&self.short[start..start + bytes.len()]);
            Ok(())
        })
    }

    /// Whether the mounted tree is this one.
    fn compare(&self, id: InodeId, path: &Path, links: &BTreeMap<InodeId, u64>) {
        let (inode, found) = (self.tree.inode(id), fs::symlink_metadata(path).unwrap());
        let at = path.display();
        assert_eq!(found.mode() & 0o7777, u32::from(inode.meta.mode), "{at}");
        assert_eq!((found.uid(), found.gid()), (inode.meta.uid, inode.meta.gid), "{at}");
        let nanos = i64::from(inode.meta.mtime.nanos);
        assert_eq!((found.mtime(), found.mtime_nsec()), (inode.meta.mtime.seconds, nanos), "{at}");
        assert_eq!(xattrs(path), inode.meta.xattrs, "{at}");
        let device = |device: &Device| libc::makedev(device.major, device.minor);
        match &inode.kind {
            Kind::File { size, .. } => {
                assert!(found.is_file() && found.len() == *size, "{at}");
                assert_eq!(fs::read(path).unwrap(), self.contents[&id], "{at}");
            }
            Kind::Symlink(target) => assert_eq!(fs::read_link(path).unwrap().as_os_str().as_bytes(), target),
            Kind::CharDevice(numbers) => {
                assert!(found.file_type().is_char_device() && found.rdev() == device(numbers), "{at}");
            }
            Kind::BlockDevice(numbers) => {
                assert!(found.file_type().is_block_device() && found.rdev() == device(numbers), "{at}");
            }
            Kind::Fifo => assert!(found.file_type().is_fifo(), "{at}"),
            Kind::Socket => assert!(found.file_type().is_socket(), "{at}"),
            Kind::Directory(entries) => {
                let mut names: Vec<OsString> =
                    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                let expected: Vec<OsString> = entries.keys().map(|name| OsString::from_vec(name.clone())).collect();
                assert_eq!(names, expected, "{at}");
                for (name, child) in entries {
                    self.compare(*child, &path.join(OsStr::from_bytes(name)), links);
                }
            }
        }
        if !matches!(inode.kind, Kind::Directory(_)) {
            assert_eq!(found.nlink(), links[&id], "{at}");
        }
    }

    fn check(&self, test: &str) {
        let bytes = self.write().unwrap();
        assert_eq!(self.file.as_file().metadata().unwrap().len(), bytes);
        let first = fs::read(self.file.path()).unwrap();
        self.write().unwrap();
        assert!(first == fs::read(self.file.path()).unwrap(), "the same tree gives other bytes");
        fsck(self.file.path());
        let Some(mounted) = Mounted::new(self.file.path(), test) else { return };
        let mut links = BTreeMap::new();
        for index in 0..self.tree.len() {
            let id = self.contents.keys().copied().find(|id| id.index() == index);
            id.map(|id| links.entry(id).or_insert(0_u64));
        }
        self.count(Tree::<Content>::ROOT, &mut links);
        self.compare(Tree::<Content>::ROOT, mounted.0.path(), &links);
    }

    fn count(&self, id: InodeId, links: &mut BTreeMap<InodeId, u64>) {
        for (_, child) in self.tree.entries(id) {
            *links.entry(child).or_insert(0) += 1;
            self.count(child, links);
        }
    }
}

/// What `fsck.erofs` says, where it is installed.
fn fsck(image: &Path) {
    match Command::new("fsck.erofs").arg(image).output() {
        Ok(said) => assert!(
            said.status.success(),
            "{}{}",
            String::from_utf8_lossy(&said.stdout),
            String::from_utf8_lossy(&said.stderr)
        ),
        Err(error) => println!("skipped: fsck.erofs of an image: {error}"),
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let with_value = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
        value.truncate(length);
        (name.to_vec(), value)
    };
    names.map(with_value).collect()
}

fn meta(mode: u16) -> Meta {
    Meta { mode, ..Meta::default() }
}

#[test]
fn what_is_written_is_what_is_mounted() {
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut builder = Builder::new();
        let mut directories = vec![Tree::<Content>::ROOT];
        let mut linkable = Vec::new();
        for number in 0..random.random_range(1..400) {
            let directory = directories[random.random_range(0..directories.len())];
            let name = name(number, &mut random);
            let meta = random_meta(&mut random);
            let device = Device { major: random.random_range(0..4096), minor: random.random_range(0..1 << 20) };
            let id = match random.random_range(0..12) {
                0 | 1 => {
                    let id = builder.add(directory, &name, meta, Kind::Directory(BTreeMap::new()));
                    directories.push(id);
                    continue;
                }
                2 => {
                    let mut target = vec![b't'; random.random_range(1..SYMLINK_BYTES_MAX)];
                    target[0] = b'/';
                    builder.add(directory, &name, without_user(meta), Kind::Symlink(target))
                }
                3 => builder.add(directory, &name, without_user(meta), Kind::CharDevice(device)),
                4 => builder.add(directory, &name, without_user(meta), Kind::BlockDevice(device)),
                5 => builder.add(directory, &name, without_user(meta), Kind::Fifo),
                6 => builder.add(directory, &name, without_user(meta), Kind::Socket),
                7 if !linkable.is_empty() => {
                    let id = linkable[random.random_range(0..linkable.len())];
                    builder.link(directory, &name, id);
                    continue;
                }
                kind => {
                    let length = random.random_range(0..if kind == 8 { 40_000 } else { 6000 });
                    let bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
                    builder.file(directory, &name, meta, &bytes, kind > 9)
                }
            };
            linkable.push(id);
        }
        builder.check("what_is_written_is_what_is_mounted");
    }
}

fn name(number: u32, random: &mut StdRng) -> Vec<u8> {
    // Signed and unsigned bytes sort differently, and `-` sorts before the dot of a directory itself.
    let first = [b'-', b'a', b'.', 0xff, 0x80, b'Z', b' '][random.random_range(0..7)];
    let mut name = vec![first];
    name.extend(format!("{number}").bytes());
    name.resize(name.len() + random.random_range(0..200), b'n');
    name
}

fn random_meta(random: &mut StdRng) -> Meta {
    let mut meta = meta(random.random_range(0..0o10000));
    if random.random_bool(0.3) {
        meta.uid = random.random();
        meta.gid = random.random_range(0..70_000);
    }
    if random.random_bool(0.5) {
        meta.mtime = Time { seconds: random.random_range(-5..1 << 35), nanos: random.random_range(0..1_000_000_000) };
    }
    for class in ["user", "trusted", "security"] {
        if random.random_bool(0.1) {
            let value = vec![random.random(); random.random_range(0..3000)];
            meta.xattrs.insert(format!("{class}.name{}", random.random_range(0..99)).into_bytes(), value);
        }
    }
    meta
}

/// The kernel shows attributes of users for files and directories alone.
fn without_user(mut meta: Meta) -> Meta {
    meta.xattrs.retain(|name, _| !name.starts_with(b"user."));
    meta
}

#[test]
fn a_large_directory_is_found_by_each_of_its_names() {
    let mut builder = Builder::new();
    let many = builder.add(Tree::<Content>::ROOT, b"many", meta(0o755), Kind::Directory(BTreeMap::new()));
    for number in 0..5000 {
        builder.file(many, format!("{number:x}").as_bytes(), meta(0o644), &[7; 10], true);
    }
    builder.check("a_large_directory_is_found_by_each_of_its_names");
}

#[test]
fn attributes_that_fill_blocks_are_kept() {
    let mut builder = Builder::new();
    let mut heavy = meta(0o600);
    for number in 0..3 {
        heavy.xattrs.insert(format!("user.heavy{number}").into_bytes(), vec![number; 20_000]);
    }
    builder.file(Tree::<Content>::ROOT, b"heavy", heavy.clone(), b"content that finds no room", true);
    builder.add(Tree::<Content>::ROOT, b"directory", heavy, Kind::Directory(BTreeMap::new()));
    builder.check("attributes_that_fill_blocks_are_kept");
}

#[test]
fn a_file_of_many_gigabytes_is_written() {
    let mut builder = Builder::new();
    let size = (9 << 30) + 5;
    let content = Content::Blocks(builder.next_block);
    builder.next_block += u32::try_from(u64::div_ceil(size, BLOCK)).unwrap();
    builder.add(Tree::<Content>::ROOT, b"large", meta(0o644), Kind::File { size, content });
    builder.file.as_file().write_all_at(b"end", BLOCK + size - 3).unwrap();
    builder.write().unwrap();
    let Some(mounted) = Mounted::new(builder.file.path(), "a_file_of_many_gigabytes_is_written") else { return };
    let path: PathBuf = mounted.0.path().join("large");
    let mut end = [0; 3];
    File::open(&path).unwrap().read_exact_at(&mut end, size - 3).unwrap();
    assert_eq!((&end, fs::metadata(&path).unwrap().len()), (b"end", size));
}

#[test]
fn an_attribute_that_cannot_be_kept_is_named() {
    assert_eq!(check_attribute(b"user.a", b""), Ok(()));
    assert_eq!(check_attribute(b"system.posix_acl_access", b"x"), Ok(()));
    assert_eq!(check_attribute(b"system.nfs4_acl", b"x"), Err(AttributeError::Class));
    assert_eq!(check_attribute(b"user.", b"x"), Err(AttributeError::Class));
    assert_eq!(check_attribute(&[b"user.".as_slice(), &[b'n'; 256]].concat(), b""), Err(AttributeError::Name));
    assert_eq!(check_attribute(b"user.a", &[0; 65536]), Err(AttributeError::Value));
}
