//! The data directory: what wrenn keeps, and where.
//!
//! ```text
//!  images/NAME/           kernel, initramfs and disks that a template boots from (crate::image)
//!  generations/ID/        memory, drive and device state (wrenn_snapshot)
//!  templates/NAME.json    a name and its generation
//!  booted/KEY.json        the generation that an image was booted into, by image and machine shape
//!  steps/KEY.json         the generation that a step of a template's build left
//!  sandboxes/ID.json      a paused sandbox, or the last pause of one that runs
//!  authority.json         the certificate authority that guests trust, where rules put something into what they send
//!  locks/                 which program has which sandbox; who boots what
//! ```

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::id::{SandboxId, TemplateName};
use crate::site::lock::{FileLock, Locks};
use crate::site::record::TEMPORARY_PREFIX;

/// A data directory.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

impl DataDir {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let dir = Self::at(path)?;
        make_private(&dir.0).map_err(Error::io("create", &dir.0))?;
        for part in ["templates", "booted", "steps", "sandboxes", "locks"] {
            let path = dir.0.join(part);
            make_private(&path).map_err(Error::io("create", &path))?;
        }
        tempfile::tempfile_in(&dir.0).map_err(Error::io("write to", &dir.0))?;
        Ok(dir)
    }

    /// The directory as it is, without anything being made.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        std::path::absolute(path).map(Self).map_err(Error::io("find", path))
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

    pub(crate) fn steps(&self) -> PathBuf {
        self.0.join("steps")
    }

    pub(crate) fn step(&self, key: &str) -> PathBuf {
        self.steps().join(format!("{key}.json"))
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.0.join("authority.json")
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.0.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(format!("{id}.json"))
    }

    /// The locks between programs. A program that runs a sandbox which has a record holds `ID`, a program that boots a
    /// template holds `boot-KEY`, one that works on a step of a build holds `step-KEY`, and a program that collects garbage or writes a record holds `collect`.
    pub(crate) fn locks(&self) -> Locks {
        Locks::new(self.0.join("locks"))
    }

    /// Takes the lock `name` if no program has it.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<FileLock>> {
        self.locks().try_lock(name)
    }

    /// Removes a lock's file; the holder does it last, while it holds the lock.
    pub(crate) fn forget_lock(&self, name: &str) {
        self.locks().forget(name);
    }
}

/// Makes a directory and those above it, mode 0700, each with a durable name.
fn create_durably(path: &Path) -> io::Result<()> {
    let make = || DirBuilder::new().mode(PRIVATE).create(path);
    let Some(parent) = path.parent() else { return Ok(()) };
    let made = match make() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => create_durably(parent).and_then(|()| make()),
        made => made,
    };
    match made {
        Ok(()) => File::open(parent)?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a directory that only its owner may enter, since memory images hold the secrets of the guests. A directory
/// that exists already is restricted in the same way if it has only wrenn's files in it: the program that built the
/// images may have made it with a wider mode.
fn make_private(path: &Path) -> io::Result<()> {
    create_durably(path)?;
    // The descriptor makes sure that the directory that was checked is the one that is changed.
    let directory = File::open(path)?;
    let metadata = directory.metadata()?;
    let is_ours = metadata.uid() == nix::unistd::geteuid().as_raw() && holds_ours_alone(path)?;
    if is_ours && metadata.mode() & 0o777 != PRIVATE {
        directory.set_permissions(Permissions::from_mode(PRIVATE))?;
    }
    Ok(())
}

/// Whether a directory has only wrenn's files in it. A user may have named a directory that is used for other things
/// too.
fn holds_ours_alone(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let is_record = Path::new(&name).extension().is_some_and(|extension| extension == "json");
        // What a crash left of one.
        let is_record = is_record || name.as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes());
        if !is_record && !PARTS.iter().any(|part| name == *part) {
            return Ok(false);
        }
    }
    Ok(true)
}

const PRIVATE: u32 = 0o700;
/// Everything that wrenn keeps in a data directory.
const PARTS: [&str; 8] = ["images", "generations", "templates", "booted", "steps", "sandboxes", "locks", "vmm"];

/// The data directory that a host opens by default: `WRENN_DATA_DIR` where that is set, else `/var/lib/wrenn` for root
/// and `$XDG_DATA_HOME/wrenn` for others, where `XDG_DATA_HOME` defaults to `$HOME/.local/share`.
///
/// ```
/// println!("{}", wrenn_core::default_data_dir().display());
/// # assert!(!wrenn_core::default_data_dir().as_os_str().is_empty());
/// ```
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
    fn every_new_directory_is_private() {
        let dir = tempfile::tempdir().unwrap();
        DataDir::create(&dir.path().join("new/data")).unwrap();
        for made in ["new", "new/data", "new/data/locks", "new/data/sandboxes"] {
            let mode = dir.path().join(made).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{made}");
        }
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
            for part in ["templates", "booted", "steps", "sandboxes", "locks"] {
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
