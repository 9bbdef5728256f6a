//! How much of the kernel's own a program may have.

use std::{fs, path::Path};

use nix::sys::resource::{Resource, setrlimit};

use crate::agent::console::complain;

/// Raises what the kernel's own limits are too low for. A limit that cannot be set is named on the console.
pub(super) fn raise() {
    // 1,024 open files are few for an agent with many processes, and all of them inherit it.
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES_MAX) {
        complain(&format!("allow more open files: {error}"));
    }
    for (file, value) in SETTINGS {
        if let Err(error) = raise_one(&Path::new("/proc/sys").join(file), value) {
            complain(&format!("set {file}: {error}"));
        }
    }
}

/// Sets a number of the kernel's, unless it is higher already.
fn raise_one(path: &Path, value: u64) -> std::io::Result<()> {
    let present: u64 = fs::read_to_string(path)?.trim().parse().unwrap_or(0);
    if present >= value { Ok(()) } else { fs::write(path, value.to_string()) }
}

/// How many files a process may have open, and how many it may allow itself; the latter is the kernel's own limit.
const OPEN_FILES: u64 = 65_536;
const OPEN_FILES_MAX: u64 = 1_048_576;

/// Each user may watch so many directories and files, which take about a KiB of the kernel's memory each when they are
/// watched; and in so many groups, for which the kernel's own limit is 128.
const SETTINGS: [(&str, u64); 2] = [("fs/inotify/max_user_watches", 524_288), ("fs/inotify/max_user_instances", 8_192)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_and_never_lowered() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("limit");
        for (before, after) in [("128\n", "8192"), ("9000\n", "9000\n"), ("", "8192")] {
            fs::write(&file, before).unwrap();
            raise_one(&file, 8192).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), after);
        }
        assert!(raise_one(&directory.path().join("none"), 1).is_err());
        for (name, _) in SETTINGS {
            assert!(Path::new("/proc/sys").join(name).exists(), "{name}");
        }
    }
}
