use std::{
    collections::HashMap,
    io::{self, Read as _},
    path::Path,
};

use rustix::fs::{CWD, OFlags};

use crate::agent::disk::opened;

/// The names of users and groups by their numbers, as they are when it is made.
#[derive(Debug, Default)]
pub(super) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Those of this machine's `/etc`.
    pub(super) fn read() -> Self {
        Self::read_in(Path::new("/etc"))
    }

    fn read_in(etc: &Path) -> Self {
        // An image without the files has no names: numbers stand for them.
        let read = |name| read(&etc.join(name)).unwrap_or_default();
        Self { users: by_number(&read("passwd")), groups: by_number(&read("group")) }
    }

    pub(super) fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    pub(super) fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

/// The text of a regular file: of what is none, somebody may wait for ever.
fn read(path: &Path) -> io::Result<String> {
    let file = opened::regular(CWD, path, OFlags::empty())?.ok_or(io::ErrorKind::InvalidInput)?;
    let mut text = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// More than any users that a guest has.
const BYTES_MAX: u64 = 4 << 20;

/// `name:password:number:…`; of two names for a number the first one counts.
fn by_number(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        let (name, number) = (fields.next(), fields.nth(1).and_then(|number| number.parse().ok()));
        if let (Some(name), Some(number)) = (name, number) {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_number_without_a_name_stands_for_itself() {
        let etc = tempfile::tempdir().unwrap();
        fs::write(etc.path().join("passwd"), "root:x:0:0::/root:/bin/sh\nbroken\ntoor:x:0:0::/:\nuser:x:1000:7::/:\n")
            .unwrap();
        let names = Names::read_in(etc.path());
        assert_eq!([names.user(0), names.user(1000), names.user(7)], ["root", "user", "7"]);
        assert_eq!(names.group(0), "0");
    }
}
