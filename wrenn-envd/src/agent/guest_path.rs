use std::path::{Component, Path, PathBuf};

use super::users::User;

/// Why text is no path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PathError {
    #[error("the path holds a NUL")]
    Nul,
    #[error("the path {0:?} names another user's home; write it out")]
    OtherHome(String),
}

/// The absolute path that a caller means: nothing is `workdir` or else the home, `~` is the home, and what is not absolute
/// lies under the home, as E2B has it.
pub(super) fn resolve(text: &str, user: &User, workdir: Option<&str>) -> Result<PathBuf, PathError> {
    let text = if text.is_empty() { workdir.unwrap_or("~") } else { text };
    if text.contains('\0') {
        return Err(PathError::Nul);
    }
    let path = match text.strip_prefix('~') {
        None => user.home.join(text),
        Some("") => user.home.clone(),
        Some(rest) if rest.starts_with('/') => user.home.join(rest.trim_start_matches('/')),
        Some(_) => return Err(PathError::OtherHome(text.chars().take(64).collect())),
    };
    // Without "." and doubled slashes. ".." stays: after a symbolic link it is the kernel's to follow.
    Ok(path.components().collect())
}

/// Whether a path ends in a name, so that what it names can be made, moved or removed: "/" and ".." cannot.
pub(super) fn is_named(path: &Path) -> bool {
    matches!(path.components().next_back(), Some(Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User { name: "user".into(), uid: 1000, gid: 1000, groups: vec![1000], home: "/home/user".into() }
    }

    #[test]
    fn relative_paths_lie_under_the_home() {
        for (text, path) in [
            ("", "/home/user"),
            ("a/b", "/home/user/a/b"),
            ("./a//b/", "/home/user/a/b"),
            ("~", "/home/user"),
            ("~/x", "/home/user/x"),
            ("/etc", "/etc"),
            ("/a/../b", "/a/../b"),
            ("/", "/"),
        ] {
            assert_eq!(resolve(text, &user(), None).unwrap(), Path::new(path), "{text}");
        }
        assert_eq!(resolve("", &user(), Some("/work")).unwrap(), Path::new("/work"));
        assert_eq!(resolve("x", &user(), Some("/work")).unwrap(), Path::new("/home/user/x"));
    }

    #[test]
    fn what_is_no_path_is_refused() {
        assert_eq!(resolve("a\0b", &user(), None), Err(PathError::Nul));
        assert_eq!(resolve("~other/x", &user(), None), Err(PathError::OtherHome("~other/x".into())));
    }

    #[test]
    fn the_root_and_the_parent_are_no_names() {
        for (path, named) in [("/", false), ("/a/..", false), ("/a", true), ("/a/../b", true)] {
            assert_eq!(is_named(Path::new(path)), named, "{path}");
        }
    }
}
