use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::AsFd as _,
};

use rustix::{
    fs::{AtFlags, unlinkat},
    io::Errno,
};

use super::{descent::Descent, spot::Spot};

/// Removes what lies at `spot`, with all that is in it. Links are removed, and not followed.
pub(in crate::agent) fn remove(spot: &Spot) -> io::Result<()> {
    if !remove_one(spot.directory(), spot.name())? {
        let mut tree = Tree {
            walk: Descent::begin(Descent::open(spot.directory(), spot.name())?),
            names: Vec::new(),
            refilled: 0,
        };
        while tree.empty()? {}
        finish(&mut tree.refilled, unlinkat(spot.directory(), spot.name(), AtFlags::REMOVEDIR))?;
    }
    Ok(())
}

/// A tree that is being emptied, from the leaves up.
struct Tree {
    walk: Descent,
    /// The directories that were gone into.
    names: Vec<OsString>,
    /// How often something had come into a directory that had just been emptied.
    refilled: u32,
}

impl Tree {
    /// Empties the directory of what is no full directory, and goes on to the next one; whether there is one.
    fn empty(&mut self) -> io::Result<bool> {
        let mut full = None;
        self.walk.entries(|name, _| {
            if full.is_none() && !remove_one(self.walk.here(), name)? {
                full = Some(name.to_owned());
            }
            Ok::<_, io::Error>(())
        })?;
        if let Some(name) = full {
            match self.walk.enter(&name) {
                Ok(()) => self.names.push(name),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            return Ok(true);
        }
        let Some(name) = self.names.pop() else { return Ok(false) };
        self.walk.leave()?;
        // What has come into it since is found when this directory is read again.
        finish(&mut self.refilled, unlinkat(self.walk.here(), &name, AtFlags::REMOVEDIR))?;
        Ok(true)
    }
}

/// Removes a name and what it stands for; `false` when that is a directory that is not empty.
fn remove_one(directory: std::os::fd::BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    let removed = match unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => unlinkat(directory.as_fd(), name, AtFlags::REMOVEDIR),
        removed => removed,
    };
    match removed {
        Ok(()) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn finish(refilled: &mut u32, removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Err(Errno::NOTEMPTY | Errno::EXIST) if *refilled < REFILLED_MAX => {
            *refilled += 1;
            Ok(())
        }
        // Somebody else was quicker.
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

/// After that it is somebody who goes on and on, and not somebody who was about to stop.
const REFILLED_MAX: u32 = 64;
