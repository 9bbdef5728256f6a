//! The data directory: what wrenn keeps, and where.
//!
//! ```text
//!  images/NAME/           kernel, initramfs and disks that a template boots from (crate::image)
//!  generations/ID/        memory, drive and device state (wrenn_snapshot)
//!  templates/NAME.json    a name and its generation
//!  booted/KEY.json        the generation that an image was booted into, by image and machine shape
//!  sandboxes/ID.json      a paused sandbox, or the last pause of one that runs
//!  locks/                 which program has which sandbox; who boots what
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};
use crate::id::{SandboxId, TemplateName};

/// The directory, with every part of it made.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

/// A lock that the kernel frees when its holder ends, however it ends.
pub(crate) type FileLock = Flock<File>;

impl DataDir {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(Error::io("find", path))?;
        let dir = Self(path);
        make_private(&dir.0).map_err(Error::io("create", &dir.0))?;
        for part in ["templates", "booted", "sandboxes", "locks"] {
            let path = dir.0.join(part);
            make_private(&path).map_err(Error::io("create", &path))?;
        }
        tempfile::tempfile_in(&dir.0).map_err(Error::io("write to", &dir.0))?;
        Ok(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn generations(&self) -> PathBuf {
        self.0.join("generations")
    }

    pub(crate) fn templates(&self) -> PathBuf {
        self.0.join("templates")
    }

    pub(crate) fn template(&self, name: &TemplateName) -> PathBuf {
        self.templates().join(format!("{name}.json"))
    }

    pub(crate) fn booted(&self) -> PathBuf {
        self.0.join("booted")
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.0.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(format!("{id}.json"))
    }

    /// Takes the lock `name` if nobody has it.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<FileLock>> {
        let (file, path) = self.open_lock(name)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(Error::io("lock", &path)(errno.into())),
        }
    }

    /// Waits for the lock `name`. Blocks.
    pub(crate) fn lock(&self, name: &str) -> Result<FileLock> {
        let (file, path) = self.open_lock(name)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::io("lock", &path)(errno.into()))
    }

    fn open_lock(&self, name: &str) -> Result<(File, PathBuf)> {
        let path = self.0.join("locks").join(name);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        Ok((file.map_err(Error::io("open", &path))?, path))
    }

    /// Removes a lock's file; the holder does it last, while it holds the lock.
    pub(crate) fn forget_lock(&self, name: &str) {
        // A file that stays is an empty file, and the next holder's.
        let _ = fs::remove_file(self.0.join("locks").join(name));
    }
}

/// Makes a directory that its owner alone may enter: memory images hold whatever the guests knew. One that is there already,
/// and has nothing in it but wrenn's, becomes so: whoever built the images has made it by the process's default mode.
fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE).create(path)?;
    // By its descriptor: what is looked at is what is changed.
    let directory = File::open(path)?;
    let metadata = directory.metadata()?;
    let is_ours = metadata.uid() == nix::unistd::geteuid().as_raw() && holds_ours_alone(path)?;
    if is_ours && metadata.mode() & 0o777 != PRIVATE {
        directory.set_permissions(Permissions::from_mode(PRIVATE))?;
    }
    Ok(())
}

/// Whether a directory is not one that a user has for other things too, and named by mistake or on purpose.
fn holds_ours_alone(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let is_record = Path::new(&name).extension().is_some_and(|extension| extension == "json");
        if !is_record && !PARTS.iter().any(|part| name == *part) {
            return Ok(false);
        }
    }
    Ok(true)
}

const PRIVATE: u32 = 0o700;
/// Everything that wrenn keeps in a data directory.
const PARTS: [&str; 7] = ["images", "generations", "templates", "booted", "sandboxes", "locks", "vmm"];

/// `WRENN_DATA_DIR`; else `/var/lib/wrenn` for root and `$XDG_DATA_HOME/wrenn` for others.
#[must_use]
pub fn default_path() -> PathBuf {
    if let Some(path) = std::env::var_os("WRENN_DATA_DIR").filter(|path| !path.is_empty()) {
        return path.into();
    }
    if nix::unistd::Uid::effective().is_root() {
        return "/var/lib/wrenn".into();
    }
    let home =
        || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), |home| Path::new(&home).join(".local/share"));
    std::env::var_os("XDG_DATA_HOME").map_or_else(home, PathBuf::from).join("wrenn")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_is_free_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::create(dir.path()).unwrap();
        let held = data.try_lock("x").unwrap().unwrap();
        assert!(data.try_lock("x").unwrap().is_none());
        drop(held);
        assert!(data.try_lock("x").unwrap().is_some());
    }

    #[test]
    fn a_data_directory_is_its_owners_alone_whoever_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let mode_of = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        // Nobody yet; who built the images; and a directory that has other things in it.
        let (fresh, set_up, shared) =
            (dir.path().join("a/fresh"), dir.path().join("set-up"), dir.path().join("shared"));
        for path in [&set_up, &shared] {
            DirBuilder::new().mode(0o755).create(path).unwrap();
            fs::create_dir(path.join("images")).unwrap();
        }
        fs::write(shared.join("letter.txt"), "").unwrap();
        for (path, mode) in [(&fresh, 0o700), (&set_up, 0o700), (&shared, 0o755)] {
            DataDir::create(path).unwrap();
            assert_eq!(mode_of(path), mode, "{}", path.display());
            for part in ["templates", "booted", "sandboxes", "locks"] {
                assert_eq!(mode_of(&path.join(part)), 0o700, "{part}");
            }
        }
        assert_eq!(mode_of(&set_up.join("images")), 0o755, "anybody may have the images");
    }

    #[test]
    fn a_file_in_the_way_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataDir::create(file.path()).unwrap_err();
        assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
    }
}
