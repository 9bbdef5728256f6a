//! The files of the host that a build copies: found, and known by their content.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::build::glob::Glob;
use crate::build::ignore::Ignore;

/// Where the paths of a recipe begin.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) directory: PathBuf,
    pub(super) bounds: Bounds,
}

/// Whether a path may lead out of the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bounds {
    /// As in a Dockerfile: no path leads out, and `.dockerignore` holds.
    Confined,
    Free,
}

/// A source as it was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Its own name.
    pub(super) name: PathBuf,
    pub(super) is_directory: bool,
    /// What is in a directory, in the order of the paths; the file itself otherwise, with an empty path.
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    pub(super) modified: u64,
    /// By their full names.
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Directory,
    Link(PathBuf),
    File { from: PathBuf, len: u64, sha256: [u8; 32] },
    Inline(Vec<u8>),
}

impl Context {
    /// Finds what the path, or the pattern, `text` leads to. Blocks.
    ///
    /// # Errors
    /// The text tells what is wrong.
    pub(super) fn find(&self, text: &str, excludes: &[String]) -> Result<Vec<Found>, String> {
        let excludes = Ignore::of(excludes.iter().map(String::as_str)).map_err(|bad| bad.0)?;
        let ignored = self.ignored()?;
        let mut found = Vec::new();
        for path in self.expand(text)? {
            let real = path.canonicalize().map_err(|error| format!("{text}: {error}"))?;
            let root = self.directory.canonicalize().map_err(told(&self.directory))?;
            if self.bounds == Bounds::Confined && !real.starts_with(&root) {
                return Err(format!("{text} leads out of {}", self.directory.display()));
            }
            let below = real.strip_prefix(&root).map(Path::to_owned).ok().filter(|_| self.bounds == Bounds::Confined);
            let walk = Walk { ignored: &ignored, excludes: &excludes, below };
            if !walk.leaves_out_whole(&real) {
                found.push(walk.source(&path, &real)?);
            }
        }
        if found.is_empty() {
            return Err(format!("{text}: there is no such file in {}", self.directory.display()));
        }
        Ok(found)
    }

    fn ignored(&self) -> Result<Ignore, String> {
        let path = self.directory.join(".dockerignore");
        if self.bounds == Bounds::Free {
            return Ok(Ignore::default());
        }
        match fs::read_to_string(&path) {
            Ok(text) => Ignore::parse(&text).map_err(|bad| format!("{}: {}", path.display(), bad.0)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ignore::default()),
            Err(error) => Err(told(&path)(error)),
        }
    }

    /// The paths that a text with patterns stands for, sorted.
    fn expand(&self, text: &str) -> Result<Vec<PathBuf>, String> {
        let path = Path::new(text);
        let mut paths = vec![self.directory.clone()];
        for part in path.components() {
            match part {
                Component::RootDir if self.bounds == Bounds::Free => paths = vec![PathBuf::from("/")],
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                Component::ParentDir if self.bounds == Bounds::Confined => {
                    return Err(format!("{text} leads out of {}", self.directory.display()));
                }
                Component::ParentDir => paths.iter_mut().for_each(|path| path.push("..")),
                Component::Normal(name) => {
                    let name = name.to_str().ok_or_else(|| format!("{text:?} is not UTF-8"))?;
                    paths = match Glob::is_pattern(name) && !paths.iter().any(|path| path.join(name).exists()) {
                        true => matches(&paths, name)?,
                        false => paths.into_iter().map(|path| path.join(name)).collect(),
                    };
                }
            }
        }
        Ok(paths)
    }
}

/// The entries of `directories` whose names match a pattern.
fn matches(directories: &[PathBuf], pattern: &str) -> Result<Vec<PathBuf>, String> {
    let glob = Glob::new(pattern).map_err(|bad| bad.0)?;
    let mut found = Vec::new();
    for directory in directories.iter().filter(|path| path.is_dir()) {
        for (name, path) in listed(directory)? {
            if name.to_str().is_some_and(|name| glob.matches(name)) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// The names in a directory, sorted, with their paths.
fn listed(directory: &Path) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let entries = fs::read_dir(directory).map_err(told(directory))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(told(directory))?;
        found.push((PathBuf::from(entry.file_name()), entry.path()));
    }
    found.sort();
    Ok(found)
}

struct Walk<'a> {
    ignored: &'a Ignore,
    excludes: &'a Ignore,
    /// Where in the context the source is; `None` where no `.dockerignore` holds.
    below: Option<PathBuf>,
}

impl Walk<'_> {
    fn leaves_out_whole(&self, real: &Path) -> bool {
        let below = self.below.as_deref().and_then(Path::to_str).filter(|path| !path.is_empty());
        below.is_some_and(|path| self.ignored.leaves_out(path) && (!real.is_dir() || self.ignored.has_no_exception()))
    }

    fn source(&self, path: &Path, real: &Path) -> Result<Found, String> {
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        let is_directory = real.is_dir();
        let mut entries = Vec::new();
        if is_directory {
            self.directory(real, Path::new(""), &mut entries)?;
        } else {
            entries.push(entry(real, PathBuf::new())?);
        }
        Ok(Found { name, is_directory, entries })
    }

    fn directory(&self, real: &Path, path: &Path, entries: &mut Vec<Entry>) -> Result<(), String> {
        for (name, from) in listed(real)? {
            let path = path.join(&name);
            let is_out = self.leaves_out(&path);
            let is_directory = from.symlink_metadata().map_err(told(&from))?.is_dir();
            if is_out && (!is_directory || (self.ignored.has_no_exception() && self.excludes.has_no_exception())) {
                continue;
            }
            if !is_out {
                entries.push(entry(&from, path.clone())?);
            }
            if is_directory {
                self.directory(&from, &path, entries)?;
            }
        }
        Ok(())
    }

    fn leaves_out(&self, path: &Path) -> bool {
        let Some(text) = path.to_str() else { return false };
        let in_context = self.below.as_ref().map(|below| below.join(path));
        self.excludes.leaves_out(text)
            || in_context.as_deref().and_then(Path::to_str).is_some_and(|text| self.ignored.leaves_out(text))
    }
}

fn entry(from: &Path, path: PathBuf) -> Result<Entry, String> {
    let metadata = from.symlink_metadata().map_err(told(from))?;
    let what = if metadata.is_dir() {
        What::Directory
    } else if metadata.is_symlink() {
        What::Link(fs::read_link(from).map_err(told(from))?)
    } else if metadata.is_file() {
        let (len, sha256) = hash(from).map_err(told(from))?;
        What::File { from: from.to_owned(), len, sha256 }
    } else {
        return Err(format!("{} is neither a file nor a directory nor a link: exclude it", from.display()));
    };
    let modified = u64::try_from(metadata.mtime()).unwrap_or(0);
    let xattrs = if metadata.is_symlink() { Vec::new() } else { xattrs(from).map_err(told(from))? };
    Ok(Entry { path, mode: metadata.mode() & 0o7777, modified, xattrs, what })
}

/// The attributes that are a file's own wherever it is.
fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        listed => listed?,
    };
    let mut xattrs = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok()) {
        if name.starts_with("user.") || name == "security.capability" {
            let mut value = vec![0; XATTR_BYTES_MAX];
            let length = rustix::fs::lgetxattr(path, name, &mut value)?;
            value.truncate(length);
            xattrs.push((name.to_owned(), value));
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

fn hash(path: &Path) -> io::Result<(u64, [u8; 32])> {
    let (mut file, mut hasher, mut len) = (File::open(path)?, Sha256::new(), 0);
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok((len, hasher.finalize().into()));
        }
        hasher.update(&piece[..read]);
        len += read as u64;
    }
}

impl Found {
    /// A file that the recipe has within itself.
    pub(super) fn inline(name: &str, content: &str) -> Self {
        let what = What::Inline(content.as_bytes().to_vec());
        let entry = Entry { path: PathBuf::new(), mode: 0o644, modified: 0, xattrs: Vec::new(), what };
        Self { name: PathBuf::from(name), is_directory: false, entries: vec![entry] }
    }

    /// Adds all that makes the guest's files what they are. The time of a change is not among it.
    pub(super) fn digest(&self, hasher: &mut Sha256) {
        let mut field = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(self.name.as_os_str().as_bytes());
        field(&[u8::from(self.is_directory)]);
        field(&(self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            field(entry.path.as_os_str().as_bytes());
            field(&entry.mode.to_le_bytes());
            field(&(entry.xattrs.len() as u64).to_le_bytes());
            for (name, value) in &entry.xattrs {
                field(name.as_bytes());
                field(value);
            }
            match &entry.what {
                What::Directory => field(b"directory"),
                What::Link(target) => {
                    field(b"link");
                    field(target.as_os_str().as_bytes());
                }
                What::File { sha256, .. } => {
                    field(b"file");
                    field(sha256);
                }
                What::Inline(content) => {
                    field(b"file");
                    field(&<[u8; 32]>::from(Sha256::digest(content)));
                }
            }
        }
    }
}

/// Of a value, and of all names together: what the kernel has at most.
const XATTR_BYTES_MAX: usize = 64 << 10;

fn told(path: &Path) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(bounds: Bounds) -> (tempfile::TempDir, Context) {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in [("a.py", "1"), ("b.py", "2"), ("d/x", "3"), ("d/e/y.pyc", "4"), ("d/skip/z", "5")] {
            fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            fs::write(dir.path().join(path), content).unwrap();
        }
        std::os::unix::fs::symlink("x", dir.path().join("d/link")).unwrap();
        let context = Context { directory: dir.path().to_owned(), bounds };
        (dir, context)
    }

    fn paths(found: &[Found]) -> Vec<String> {
        let path = |found: &Found, entry: &Entry| found.name.join(&entry.path).to_str().unwrap().to_owned();
        let all = found.iter().flat_map(|found| found.entries.iter().map(|entry| path(found, entry)));
        all.map(|path| path.trim_end_matches('/').to_owned()).collect()
    }

    fn digest(found: &[Found]) -> Vec<u8> {
        let mut hasher = Sha256::new();
        found.iter().for_each(|found| found.digest(&mut hasher));
        hasher.finalize().to_vec()
    }

    #[test]
    fn files_directories_and_patterns_are_found_without_what_is_excluded() {
        let (dir, context) = context(Bounds::Confined);
        assert_eq!(paths(&context.find("a.py", &[]).unwrap()), ["a.py"]);
        assert_eq!(paths(&context.find("/*.py", &[]).unwrap()), ["a.py", "b.py"]);
        let found = context.find("d", &["**/*.pyc".to_owned(), "skip".to_owned()]).unwrap();
        assert_eq!(paths(&found), ["d/e", "d/link", "d/x"]);
        fs::write(dir.path().join(".dockerignore"), "d/e\na.*\n").unwrap();
        assert_eq!(paths(&context.find("d", &[]).unwrap()), ["d/link", "d/skip", "d/skip/z", "d/x"]);
        for bad in ["a.py", "none", "*.rs", "../x", "[a"] {
            assert!(context.find(bad, &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_link_leads_out_of_a_confined_context() {
        let (dir, context) = context(Bounds::Confined);
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("out")).unwrap();
        assert!(context.find("out", &[]).unwrap_err().contains("leads out"));
        let free = Context { bounds: Bounds::Free, ..context };
        assert!(free.find("/etc/passwd", &[]).is_ok());
    }

    #[test]
    fn the_digest_changes_with_name_mode_and_content_and_not_with_time() {
        let (dir, context) = context(Bounds::Free);
        let first = digest(&context.find("d", &[]).unwrap());
        let path = dir.path().join("d/x");
        File::options().write(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(digest(&context.find("d", &[]).unwrap()), first);
        fs::write(&path, "other").unwrap();
        let second = digest(&context.find("d", &[]).unwrap());
        assert_ne!(second, first);
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let third = digest(&context.find("d", &[]).unwrap());
        assert_ne!(third, second);
        fs::rename(&path, dir.path().join("d/w")).unwrap();
        assert_ne!(digest(&context.find("d", &[]).unwrap()), third);
    }
}
