use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, RawMode, Stat, mkdirat, openat, renameat, statat, unlinkat},
    io::Errno,
};

/// A name in a directory that is open: it stays in that directory, whatever becomes of the path that led there.
#[derive(Debug)]
pub(in crate::agent) struct Spot {
    directory: OwnedFd,
    name: OsString,
}

impl Spot {
    /// The last name of `path`, in a directory that has to be there. Links on the way are followed; what the name itself
    /// leads to is not looked at.
    pub(in crate::agent) fn find(path: &Path) -> io::Result<Self> {
        let (parent, name) = split(path)?;
        Ok(Self { directory: open_directory(parent)?, name: name.to_owned() })
    }

    /// The same, and makes the directories on the way that are missing, with the permissions `mode`.
    pub(in crate::agent) fn make(path: &Path, mode: RawMode) -> io::Result<Self> {
        let (parent, name) = split(path)?;
        Ok(Self { directory: make_directories(parent, mode)?, name: name.to_owned() })
    }

    /// Another name in the same directory.
    pub(in crate::agent) fn beside(&self, name: impl Into<OsString>) -> io::Result<Self> {
        Ok(Self { directory: self.directory.try_clone()?, name: name.into() })
    }

    pub(in crate::agent) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(in crate::agent) fn name(&self) -> &OsStr {
        &self.name
    }

    /// What lies there. A link is told of itself.
    pub(in crate::agent) fn stat(&self) -> rustix::io::Result<Stat> {
        statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Opens what lies there, and no link.
    pub(in crate::agent) fn open(&self, flags: OFlags, mode: RawMode) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.directory, &self.name, flags, Mode::from_raw_mode(mode))
    }

    /// Gives what lies here the name `to`, in the place of what has that name.
    pub(in crate::agent) fn rename(&self, to: &Self) -> rustix::io::Result<()> {
        renameat(&self.directory, &self.name, &to.directory, &to.name)
    }

    /// Removes a name that is no directory's.
    pub(in crate::agent) fn unlink(&self) -> rustix::io::Result<()> {
        unlinkat(&self.directory, &self.name, AtFlags::empty())
    }
}

/// Opens the directory at `path`, and makes those on the way that are missing, itself included.
pub(in crate::agent) fn make_directories(path: &Path, mode: RawMode) -> io::Result<OwnedFd> {
    let mut missing = Vec::new();
    let mut nearest = path;
    let mut directory = loop {
        match (open_directory(nearest), nearest.parent(), nearest.components().next_back()) {
            (Err(error), Some(parent), Some(last)) if error.kind() == io::ErrorKind::NotFound => {
                missing.push(last);
                nearest = parent;
            }
            (opened, ..) => break opened?,
        }
    };
    for component in missing.into_iter().rev() {
        let name = component.as_os_str();
        if matches!(component, Component::Normal(_)) {
            match mkdirat(&directory, name, Mode::from_raw_mode(mode)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        directory = openat(&directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    }
    Ok(directory)
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, DIRECTORY, Mode::empty())?)
}

fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    match (path.parent(), path.components().next_back()) {
        (Some(parent), Some(Component::Normal(name))) => Ok((parent, name)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it ends in no name")),
    }
}

/// A directory that is only passed through takes no right to read it.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_spot_stays_where_it_is_when_its_path_leads_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("way")).unwrap();
        fs::create_dir_all(at("other")).unwrap();
        fs::write(at("way/file"), "mine").unwrap();
        fs::write(at("other/file"), "others").unwrap();
        let spot = Spot::find(&at("way/file")).unwrap();
        fs::rename(at("way"), at("moved")).unwrap();
        symlink("other", at("way")).unwrap();
        spot.unlink().unwrap();
        assert!(!at("moved/file").exists() && at("other/file").exists());
    }

    #[test]
    fn directories_are_made_and_links_among_them_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        Spot::make(&at("a/b/../c/file"), 0o755).unwrap();
        assert!(at("a/b").is_dir() && at("a/c").is_dir());
        // There, and led through.
        symlink("a", at("link")).unwrap();
        Spot::make(&at("link/d/file"), 0o755).unwrap();
        assert!(at("a/d").is_dir());
        symlink("nowhere", at("dangling")).unwrap();
        Spot::make(&at("dangling/d/file"), 0o755).unwrap_err();
        assert!(!at("nowhere").exists());
        fs::write(at("file"), "").unwrap();
        assert_eq!(Spot::make(&at("file/d/x"), 0o755).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        assert_eq!(Spot::find(&at("..")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
