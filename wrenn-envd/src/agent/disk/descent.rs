use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
};

use rustix::fs::{Dir, FileType, Mode, OFlags, fstat, openat};

/// A walk down a tree of directories and back. One directory is open at a time, however deep it is, and no link is followed.
#[derive(Debug)]
pub(in crate::agent) struct Descent {
    here: OwnedFd,
    /// The directories on the way, from the top: what they have to be on the way back.
    above: Vec<Identity>,
}

/// Device and inode.
type Identity = (u64, u64);

impl Descent {
    /// A walk that begins in an open directory, which has to be open for reading.
    pub(in crate::agent) fn begin(top: OwnedFd) -> Self {
        Self { here: top, above: Vec::new() }
    }

    /// Opens a directory to begin in, and no link to one.
    pub(in crate::agent) fn open(directory: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
        openat(directory, name, DIRECTORY, Mode::empty())
    }

    pub(in crate::agent) fn here(&self) -> BorrowedFd<'_> {
        self.here.as_fd()
    }

    /// Goes into the directory `name`. An error leaves the walk where it is: one that has no way back is not gone into.
    pub(in crate::agent) fn enter(&mut self, name: &OsStr) -> io::Result<()> {
        let below = Self::open(&self.here, name)?;
        let here = identity(&self.here)?;
        self.parent_of(&below, here)?;
        self.above.push(here);
        self.here = below;
        Ok(())
    }

    /// Goes back to the directory above.
    pub(in crate::agent) fn leave(&mut self) -> io::Result<()> {
        let above = self.above.last().ok_or_else(|| io::Error::other("the walk is at its top"))?;
        self.here = self.parent_of(&self.here, *above)?;
        self.above.pop();
        Ok(())
    }

    fn parent_of(&self, directory: &OwnedFd, expected: Identity) -> io::Result<OwnedFd> {
        let parent = Self::open(directory, OsStr::new(".."))?;
        if identity(&parent)? == expected {
            Ok(parent)
        } else {
            Err(io::Error::other("a directory was moved while it was gone through"))
        }
    }

    /// The entries of the directory, in no order, as far as `each` wants to see them. A kind that the file system does not
    /// tell is [`FileType::Unknown`].
    pub(in crate::agent) fn entries<E: From<io::Error>>(
        &self,
        mut each: impl FnMut(&OsStr, FileType) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut stream = Dir::read_from(&self.here).map_err(io::Error::from)?;
        while let Some(entry) = stream.read() {
            let entry = entry.map_err(io::Error::from)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                each(name, entry.file_type())?;
            }
        }
        Ok(())
    }

    /// Whether the directory is empty.
    pub(in crate::agent) fn is_empty(&self) -> io::Result<bool> {
        let mut first = None;
        // The first one is enough; it ends the reading as an error would.
        let read = self.entries(|name, _| {
            first = Some(name.to_owned());
            Err(io::Error::other("enough"))
        });
        match (read, first) {
            (_, Some(_)) => Ok(false),
            (read, None) => read.map(|()| true),
        }
    }
}

fn identity(directory: &OwnedFd) -> io::Result<Identity> {
    let found = fstat(directory)?;
    Ok((found.st_dev, found.st_ino))
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, fs, os::unix::fs::symlink, path::Path};

    use rustix::fs::CWD;

    use super::*;

    fn begin(path: &Path) -> Descent {
        Descent::begin(Descent::open(CWD, path.as_os_str()).unwrap())
    }

    #[test]
    fn a_walk_comes_back_the_way_it_went_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("one/two")).unwrap();
        symlink("one", at("link")).unwrap();
        let mut walk = begin(directory.path());
        walk.enter(OsStr::new("link")).unwrap_err();
        walk.enter(OsStr::new("one")).unwrap();
        walk.enter(OsStr::new("two")).unwrap();
        assert!(walk.is_empty().unwrap());
        walk.leave().unwrap();
        let mut names: Vec<OsString> = Vec::new();
        walk.entries(|name, _| {
            names.push(name.to_owned());
            Ok::<_, io::Error>(())
        })
        .unwrap();
        assert_eq!(names, ["two"]);
        walk.enter(OsStr::new("two")).unwrap();
        fs::rename(at("one/two"), at("elsewhere")).unwrap();
        assert!(walk.leave().unwrap_err().to_string().contains("moved"));
    }
}
