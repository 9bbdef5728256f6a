//! The trees that a build makes on its way, and their removal.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{User, geteuid};

use crate::image::error::ImageError;
use crate::image::tools::{self, Tool};

/// Fails where a user who is not root has none of the ids that the files of a base need.
pub(super) fn check_ids() -> Result<(), ImageError> {
    if tools::is_root() {
        return Ok(());
    }
    tools::require(&[tools::UNSHARE, tools::NEWUIDMAP])?;
    let uid = geteuid();
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let has = |path: &str| has_range(&fs::read_to_string(path).unwrap_or_default(), &name, uid.as_raw());
    if has("/etc/subuid") && has("/etc/subgid") { Ok(()) } else { Err(ImageError::NoSubordinateIds { user: name }) }
}

/// Whether a user has a range in what `/etc/subuid` says, see subuid(5).
fn has_range(text: &str, name: &str, uid: u32) -> bool {
    let owner = |line: &str| line.split(':').next().is_some_and(|owner| owner == name || owner == uid.to_string());
    text.lines().any(|line| owner(line) && line.split(':').count() == 3)
}

/// Removes a directory of a build with all that is in it, also what belongs to the user's subordinate ids. Blocks.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !tools::is_root() => remove_as_root(path),
        done => done,
    }
}

fn remove_as_root(path: &Path) -> io::Result<()> {
    let (program, args) = Tool::as_root("rm").args(["-rf", "--"]).arg(path).into_parts().map_err(io::Error::other)?;
    let removed = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    if removed.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&removed.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_a_users_by_name_or_number() {
        let text = "ann:100000:65536\n1001:165536:65536\nbob\n";
        assert!(has_range(text, "ann", 7) && has_range(text, "eve", 1001));
        assert!(!has_range(text, "an", 7) && !has_range(text, "bob", 7) && !has_range("", "ann", 7));
    }
}
